# Redis, which servers share for limits of requests and for failed logins: it holds nothing that may not be lost.
resource "aws_elasticache_subnet_group" "main" {
  name       = var.name
  subnet_ids = [for subnet in aws_subnet.data : subnet.id]
}

resource "aws_secretsmanager_secret" "cache" {
  #checkov:skip=CKV2_AWS_57:whoever changes it changes the servers' settings, too
  name       = "${var.name}/cache"
  kms_key_id = aws_kms_key.data.arn
}

ephemeral "aws_secretsmanager_random_password" "cache" {
  password_length     = 48
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret_version" "cache" {
  secret_id                = aws_secretsmanager_secret.cache.id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.cache.random_password
  secret_string_wo_version = 1
}

data "aws_secretsmanager_secret_version" "cache" {
  secret_id  = aws_secretsmanager_secret.cache.id
  depends_on = [aws_secretsmanager_secret_version.cache]
}

resource "aws_elasticache_replication_group" "main" {
  replication_group_id = var.name
  description          = "${var.name}: shared limits"
  engine               = "redis"
  engine_version       = "7.1"
  node_type            = var.cache_node_type

  num_cache_clusters         = 3
  multi_az_enabled           = true
  automatic_failover_enabled = true
  subnet_group_name          = aws_elasticache_subnet_group.main.name
  security_group_ids         = [aws_security_group.cache.id]

  at_rest_encryption_enabled = true
  kms_key_id                 = aws_kms_key.data.arn
  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  auth_token                 = data.aws_secretsmanager_secret_version.cache.secret_string # in the state, which is encrypted
  auto_minor_version_upgrade = true
  snapshot_retention_limit   = 1
}
