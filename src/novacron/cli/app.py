"""All commands that talk to the API."""

from __future__ import annotations

from novacron.cli import (
    access,
    apply,
    audit,
    backups,
    contexts,
    diagnosis,
    drills,
    events,
    forecasts,
    guests,
    images,
    invitations,
    keys,
    links,
    load,
    login,
    migrations,
    networks,
    nodes,
    objects,
    plans,
    project_moves,
    rebalance,
    replicas,
    rollouts,
    root,
    runbooks,
    second_factors,
    sites,
    snapshots,
    ssh,
    tokens,
    top,
    vm_cds,
    vm_copies,
    vm_create,
    vm_nics,
    vm_templates,
    vm_unreconciled,
    vms,
    volumes,
)

app = root.tree()
vms.app.command(cls=vm_create.Create)(vm_create.create)
vms.app.command()(vm_create.placement)
vms.app.command()(vm_cds.insert)
vms.app.command()(vm_cds.eject)
vms.app.command()(vm_copies.clone)
vms.app.command()(vm_copies.export)
vms.app.command("import")(vm_copies.import_)
vms.app.command()(vm_copies.exports)
vms.app.command("delete-export")(vm_copies.delete_export)
vms.app.command("exec")(guests.exec_)
vms.app.command()(guests.push)
vms.app.command()(guests.pull)
vms.app.command(context_settings={"allow_interspersed_args": False})(ssh.ssh)
vms.app.command("forward-port")(ssh.forward_port)
vms.app.command()(top.top)
vms.app.command("load")(load.of_vm)
nodes.app.command("load")(load.of_node)
vms.app.command()(vm_unreconciled.unreconciled)
vms.app.command()(vm_unreconciled.adopt)
vms.app.command()(vm_unreconciled.forget)
vms.app.command()(replicas.replicate)
vms.app.command()(replicas.failover)
vms.app.add_typer(vm_nics.app, name="nic")
vms.app.command("move-to-project")(project_moves.vm)
app.add_typer(vms.app, name="vm")
app.add_typer(vm_templates.flavors, name="flavor")
app.add_typer(vm_templates.templates, name="template")
app.add_typer(snapshots.app, name="snapshot")
volumes.app.command("move-to-project")(project_moves.volume)
app.add_typer(backups.app, name="backup")
app.add_typer(replicas.app, name="replica")
app.add_typer(plans.app, name="plan")
app.add_typer(volumes.app, name="volume")
app.add_typer(volumes.pools, name="pool")
app.add_typer(networks.app, name="network")
app.add_typer(networks.groups, name="security-group")
app.add_typer(networks.floating, name="floating-address")
app.add_typer(networks.forwards, name="forward")
app.add_typer(nodes.app, name="node")
app.add_typer(sites.app, name="site")
app.add_typer(rebalance.app, name="rebalance")
app.add_typer(forecasts.app, name="forecast")
app.command("capacity")(forecasts.capacity)
app.add_typer(migrations.app, name="migration")
app.add_typer(rollouts.app, name="rollout")
app.add_typer(runbooks.app, name="runbook")
app.add_typer(drills.app, name="drill")
app.add_typer(links.app, name="link")
images.app.command("move-to-project")(project_moves.image)
app.add_typer(images.app, name="image")
app.add_typer(tokens.app, name="token")
app.add_typer(keys.app, name="key")
app.add_typer(contexts.app, name="context")
app.add_typer(access.projects, name="project")
app.add_typer(access.platform_keys, name="platform-key")
app.add_typer(access.users, name="user")
app.add_typer(access.grants, name="grant")
app.add_typer(second_factors.app, name="second-factor")
app.add_typer(invitations.app, name="invitation")
app.command("events")(events.events)
app.add_typer(audit.app, name="audit")
app.command("whoami")(access.whoami)
app.command("log-level")(diagnosis.log_level)
app.command("get")(objects.get)
app.command("apply")(apply.apply)
app.command("edit")(objects.edit)
app.command("explain")(objects.explain)
app.command("login")(login.login)
app.command("logout")(login.logout)
app.command("web")(login.web)
for group in app.registered_groups:
    group.cls = root.Group
