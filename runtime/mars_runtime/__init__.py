"""The device side: engines, sensors, health, the decision loop; never imports torch."""
