# Hosts for VMs: metal instances, because VMs need the processor's virtualization. They join by themselves with nothing:
# docs/how-to/deploy-on-aws.md says how each gets its token.
locals {
  agents = { for number in range(var.agents) : format("host-%02d", number + 1) => var.zones[number % 3] }
}

resource "aws_instance" "agent" {
  for_each = local.agents

  ami                     = var.agent_image
  instance_type           = var.agent_instance_type
  subnet_id               = aws_subnet.agents[each.value].id
  vpc_security_group_ids  = [aws_security_group.agents.id]
  iam_instance_profile    = aws_iam_instance_profile.agent.name
  source_dest_check       = true
  monitoring              = true
  ebs_optimized           = true
  disable_api_termination = true

  metadata_options { # one hop: guests, which are behind their host, get no answer
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = var.agent_disk_gib
    encrypted   = true
    kms_key_id  = aws_kms_key.data.arn
  }

  tags = { Name = "${var.name}-${each.key}" }

  lifecycle {
    ignore_changes = [ami] # another image would replace the host with its VMs
  }
}

# Operators reach hosts through Systems Manager: no port for SSH is open.
resource "aws_iam_role" "agent" {
  name               = "${var.name}-agent"
  assume_role_policy = data.aws_iam_policy_document.assume["ec2"].json
}

resource "aws_iam_role_policy_attachment" "agent" {
  role       = aws_iam_role.agent.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "agent" {
  name = "${var.name}-agent"
  role = aws_iam_role.agent.name
}
