"""What stands between a caller and a service that may fail: breaker, throttle, retry; the clock is passed in."""
