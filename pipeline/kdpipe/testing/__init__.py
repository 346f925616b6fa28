"""Test suites and doubles for people who write their own losses, encodings, datasets or training loops."""
