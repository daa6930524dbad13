"""What runs on every host: link, workers, inventory, local journal."""
