# Made of aio/collections.py by script/generate: change that, and run it.
"""Objects with types and methods: ``client.vms``, ``client.nodes`` and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novacron.client.sync.calls import ApiCalls

if TYPE_CHECKING:
    from novacron.client.sync import backup_handles, replica_handles, resources, template_handles, vm_handles


class Collections(ApiCalls):
    """A collection for each kind of object. What they need is loaded with their first use: it takes a while."""

    @property
    def vms(self) -> vm_handles.VmCollection:
        from novacron.client.sync import vm_handles

        return vm_handles.VmCollection(self)

    @property
    def flavors(self) -> template_handles.FlavorCollection:
        from novacron.client.sync import template_handles

        return template_handles.FlavorCollection(self)

    @property
    def templates(self) -> template_handles.TemplateCollection:
        from novacron.client.sync import template_handles

        return template_handles.TemplateCollection(self)

    @property
    def migrations(self) -> vm_handles.MigrationCollection:
        from novacron.client.sync import vm_handles

        return vm_handles.MigrationCollection(self)

    @property
    def exports(self) -> vm_handles.ExportCollection:
        from novacron.client.sync import vm_handles

        return vm_handles.ExportCollection(self)

    @property
    def backups(self) -> backup_handles.BackupCollection:
        from novacron.client.sync import backup_handles

        return backup_handles.BackupCollection(self)

    @property
    def backup_repositories(self) -> backup_handles.BackupRepositoryCollection:
        from novacron.client.sync import backup_handles

        return backup_handles.BackupRepositoryCollection(self)

    @property
    def backup_policies(self) -> backup_handles.BackupPolicyCollection:
        from novacron.client.sync import backup_handles

        return backup_handles.BackupPolicyCollection(self)

    @property
    def replicas(self) -> replica_handles.ReplicaCollection:
        from novacron.client.sync import replica_handles

        return replica_handles.ReplicaCollection(self)

    @property
    def volumes(self) -> resources.VolumeCollection:
        from novacron.client.sync import resources

        return resources.VolumeCollection(self)

    @property
    def images(self) -> resources.ImageCollection:
        from novacron.client.sync import resources

        return resources.ImageCollection(self)

    @property
    def imports(self) -> resources.ImportCollection:
        from novacron.client.sync import resources

        return resources.ImportCollection(self)

    @property
    def networks(self) -> resources.NetworkCollection:
        from novacron.client.sync import resources

        return resources.NetworkCollection(self)

    @property
    def security_groups(self) -> resources.SecurityGroupCollection:
        from novacron.client.sync import resources

        return resources.SecurityGroupCollection(self)

    @property
    def floating_addresses(self) -> resources.FloatingAddressCollection:
        from novacron.client.sync import resources

        return resources.FloatingAddressCollection(self)

    @property
    def forwards(self) -> resources.ForwardCollection:
        from novacron.client.sync import resources

        return resources.ForwardCollection(self)

    @property
    def nodes(self) -> resources.NodeCollection:
        from novacron.client.sync import resources

        return resources.NodeCollection(self)

    @property
    def drills(self) -> resources.DrillCollection:
        from novacron.client.sync import resources

        return resources.DrillCollection(self)

    @property
    def drains(self) -> resources.DrainCollection:
        from novacron.client.sync import resources

        return resources.DrainCollection(self)

    @property
    def projects(self) -> resources.ProjectCollection:
        from novacron.client.sync import resources

        return resources.ProjectCollection(self)

    @property
    def users(self) -> resources.UserCollection:
        from novacron.client.sync import resources

        return resources.UserCollection(self)

    @property
    def grants(self) -> resources.GrantCollection:
        from novacron.client.sync import resources

        return resources.GrantCollection(self)

    @property
    def events(self) -> resources.EventCollection:
        from novacron.client.sync import resources

        return resources.EventCollection(self)
