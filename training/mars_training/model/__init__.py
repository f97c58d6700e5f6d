"""The MARS network: encoders, fusion, routers, experts, and how the two-pass forward combines them."""
