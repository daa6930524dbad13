"""The dashboards of NovaCron for Grafana, as code. ``python -m deploy.grafana`` writes them into ``dashboards/``."""
