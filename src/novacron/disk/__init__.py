"""Images: what VMs boot from."""
