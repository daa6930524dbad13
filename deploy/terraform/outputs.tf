output "cluster" {
  value = aws_eks_cluster.main.name
}

output "database_host" {
  value = aws_db_instance.main.address
}

output "database_secret" {
  value = aws_secretsmanager_secret.database.arn
}

output "cache_host" {
  value = aws_elasticache_replication_group.main.primary_endpoint_address
}

output "cache_secret" {
  value = aws_secretsmanager_secret.cache.arn
}

output "agents" {
  value = { for name, host in aws_instance.agent : name => host.private_ip }
}

output "metrics_endpoint" {
  value = aws_prometheus_workspace.main.prometheus_endpoint
}
