# What watches the platform from outside of it. NovaCron's own metrics and alerts: deploy/kubernetes/monitoring.
resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = aws_kms_key.data.id
}

resource "aws_sns_topic_subscription" "alarms" {
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.alerts
}

locals {
  database = { DBInstanceIdentifier = aws_db_instance.main.identifier }

  database_alarms = {
    database-cpu         = { namespace = "AWS/RDS", metric = "CPUUtilization", dimensions = local.database, above = 80, of = "Average" }
    database-connections = { namespace = "AWS/RDS", metric = "DatabaseConnections", dimensions = local.database, above = 250, of = "Maximum" }
    database-queue       = { namespace = "AWS/RDS", metric = "DiskQueueDepth", dimensions = local.database, above = 20, of = "Average" }
  }

  host_alarms = {
    for name, host in aws_instance.agent : name => {
      namespace = "AWS/EC2", metric = "StatusCheckFailed", dimensions = { InstanceId = host.id }, above = 0, of = "Maximum"
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "above" {
  for_each = merge(local.database_alarms, local.host_alarms)

  alarm_name          = "${var.name}-${each.key}"
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.of
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.above
  period              = 60
  evaluation_periods  = 5
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}

resource "aws_cloudwatch_metric_alarm" "database_disk" {
  alarm_name          = "${var.name}-database-disk"
  namespace           = "AWS/RDS"
  metric_name         = "FreeStorageSpace"
  dimensions          = local.database
  statistic           = "Minimum"
  comparison_operator = "LessThanThreshold"
  threshold           = 10 * 1024 * 1024 * 1024
  period              = 300
  evaluation_periods  = 2
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}

# Metrics for longer than the cluster lives: Prometheus in the cluster may write here as well.
resource "aws_prometheus_workspace" "main" {
  alias       = var.name
  kms_key_arn = aws_kms_key.data.arn

  logging_configuration {
    log_group_arn = "${aws_cloudwatch_log_group.metrics.arn}:*"
  }
}

resource "aws_cloudwatch_log_group" "metrics" {
  name              = "/aws/vendedlogs/${var.name}/prometheus"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.data.arn
}
