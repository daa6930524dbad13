variable "name" {
  description = "Prefix of all names; also the name of the cluster."
  type        = string
  default     = "novacron"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "name must begin with a letter and have 2 to 20 lower-case letters, digits or hyphens."
  }
}

variable "region" {
  description = "AWS region; it must have three availability zones and metal instances."
  type        = string
}

variable "zones" {
  description = "Three availability zones of the region. Their order must not change: address ranges follow from it."
  type        = list(string)

  validation {
    condition     = length(distinct(var.zones)) == 3
    error_message = "zones must name three different zones."
  }
}

variable "cidr" {
  description = "Address range of the VPC, a /16. deploy/kubernetes/aws names it, too."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && endswith(var.cidr, "/16")
    error_message = "cidr must be a /16, such as 10.40.0.0/16."
  }
}

variable "operators" {
  description = "Address ranges from which operators reach Kubernetes' API and the servers."
  type        = list(string)

  validation {
    condition     = length(var.operators) > 0 && alltrue([for range in var.operators : can(cidrhost(range, 0)) && !endswith(range, "/0")])
    error_message = "operators must name address ranges, and not the whole Internet."
  }
}

variable "alerts" {
  description = "Mail address that is told of alarms; it has to confirm once."
  type        = string
}

variable "kubernetes_version" {
  type    = string
  default = "1.34"
}

variable "cluster_instance_type" {
  type    = string
  default = "m7i.large"
}

variable "database_instance_class" {
  type    = string
  default = "db.m7g.large"
}

variable "cache_node_type" {
  type    = string
  default = "cache.t4g.small"
}

variable "agent_instance_type" {
  description = "A metal type: only those give VMs hardware virtualization."
  type        = string
  default     = "m7i.metal-24xl"

  validation {
    condition     = strcontains(var.agent_instance_type, ".metal")
    error_message = "agent_instance_type must be a metal type, such as m7i.metal-24xl."
  }
}

variable "agents" {
  description = "How many hosts for VMs; they are spread over the zones."
  type        = number
  default     = 3
}

variable "agent_image" {
  description = "AMI of Debian 12 or 13 for agents."
  type        = string
}

variable "agent_disk_gib" {
  type    = number
  default = 500
}
