"""One program per published figure, peers measured in the same run: ``script/bench NAME``."""
