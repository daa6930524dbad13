"""One virtual machine as a process: command line, QMP, accelerator probe, console."""
