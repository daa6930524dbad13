# Who may reach whom: groups name each other. Ports of servers are opened by Kubernetes, for its load balancer and for the
# ranges that deploy/kubernetes/aws names. No port is open to the Internet.
resource "aws_security_group" "agents" {
  name        = "${var.name}-agents"
  description = "Hosts of VMs"
  vpc_id      = aws_vpc.main.id
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL"
  vpc_id      = aws_vpc.main.id
}

resource "aws_security_group" "cache" {
  name        = "${var.name}-cache"
  description = "Redis"
  vpc_id      = aws_vpc.main.id
}

locals {
  # from the cluster's own group, which EKS gives its control plane and its nodes
  cluster_group = aws_eks_cluster.main.vpc_config[0].cluster_security_group_id

  between_groups = {
    database   = { to = aws_security_group.database.id, from = local.cluster_group, port = 5432, end = 5432, protocol = "tcp", what = "PostgreSQL" }
    cache      = { to = aws_security_group.cache.id, from = local.cluster_group, port = 6379, end = 6379, protocol = "tcp", what = "Redis" }
    migrations = { to = aws_security_group.agents.id, from = aws_security_group.agents.id, port = 7445, end = 7445, protocol = "tcp", what = "Migrations between hosts" }
    networks   = { to = aws_security_group.agents.id, from = aws_security_group.agents.id, port = 4789, end = 4789, protocol = "udp", what = "Networks of VMs (VXLAN)" }
    encrypted  = { to = aws_security_group.agents.id, from = aws_security_group.agents.id, port = 51820, end = 51820, protocol = "udp", what = "Encrypted networks of VMs (WireGuard)" }
  }
}

resource "aws_vpc_security_group_ingress_rule" "between" {
  for_each = local.between_groups

  security_group_id            = each.value.to
  referenced_security_group_id = each.value.from
  ip_protocol                  = each.value.protocol
  from_port                    = each.value.protocol == "-1" ? null : each.value.port
  to_port                      = each.value.protocol == "-1" ? null : each.value.end
  description                  = each.value.what
}

# Out: packages and AWS's own services over HTTPS, and what is within the VPC. Databases open no connections.
resource "aws_vpc_security_group_egress_rule" "agents_https" {
  security_group_id = aws_security_group.agents.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  description       = "Packages, images, AWS's services"
}

resource "aws_vpc_security_group_egress_rule" "agents_vpc" {
  security_group_id = aws_security_group.agents.id
  cidr_ipv4         = var.cidr
  ip_protocol       = "-1"
  description       = "Servers, other hosts, names"
}
