"""What listens to a stream of decisions over a network: a live page, metrics, MQTT, the service manager's watchdog."""
