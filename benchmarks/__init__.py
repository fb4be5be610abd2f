"""What sage-sandbox costs, each figure beside a floor that was measured in the same run: ``python -m benchmarks``."""
