"""Objects with types and methods: ``client.vms``, ``client.nodes`` and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novacron.client.aio.calls import AsyncApiCalls

if TYPE_CHECKING:
    from novacron.client.aio import backup_handles, replica_handles, resources, template_handles, vm_handles


class AsyncCollections(AsyncApiCalls):
    """A collection for each kind of object. What they need is loaded with their first use: it takes a while."""

    @property
    def vms(self) -> vm_handles.AsyncVmCollection:
        from novacron.client.aio import vm_handles

        return vm_handles.AsyncVmCollection(self)

    @property
    def flavors(self) -> template_handles.AsyncFlavorCollection:
        from novacron.client.aio import template_handles

        return template_handles.AsyncFlavorCollection(self)

    @property
    def templates(self) -> template_handles.AsyncTemplateCollection:
        from novacron.client.aio import template_handles

        return template_handles.AsyncTemplateCollection(self)

    @property
    def migrations(self) -> vm_handles.AsyncMigrationCollection:
        from novacron.client.aio import vm_handles

        return vm_handles.AsyncMigrationCollection(self)

    @property
    def exports(self) -> vm_handles.AsyncExportCollection:
        from novacron.client.aio import vm_handles

        return vm_handles.AsyncExportCollection(self)

    @property
    def backups(self) -> backup_handles.AsyncBackupCollection:
        from novacron.client.aio import backup_handles

        return backup_handles.AsyncBackupCollection(self)

    @property
    def backup_repositories(self) -> backup_handles.AsyncBackupRepositoryCollection:
        from novacron.client.aio import backup_handles

        return backup_handles.AsyncBackupRepositoryCollection(self)

    @property
    def backup_policies(self) -> backup_handles.AsyncBackupPolicyCollection:
        from novacron.client.aio import backup_handles

        return backup_handles.AsyncBackupPolicyCollection(self)

    @property
    def replicas(self) -> replica_handles.AsyncReplicaCollection:
        from novacron.client.aio import replica_handles

        return replica_handles.AsyncReplicaCollection(self)

    @property
    def volumes(self) -> resources.AsyncVolumeCollection:
        from novacron.client.aio import resources

        return resources.AsyncVolumeCollection(self)

    @property
    def images(self) -> resources.AsyncImageCollection:
        from novacron.client.aio import resources

        return resources.AsyncImageCollection(self)

    @property
    def imports(self) -> resources.AsyncImportCollection:
        from novacron.client.aio import resources

        return resources.AsyncImportCollection(self)

    @property
    def networks(self) -> resources.AsyncNetworkCollection:
        from novacron.client.aio import resources

        return resources.AsyncNetworkCollection(self)

    @property
    def security_groups(self) -> resources.AsyncSecurityGroupCollection:
        from novacron.client.aio import resources

        return resources.AsyncSecurityGroupCollection(self)

    @property
    def floating_addresses(self) -> resources.AsyncFloatingAddressCollection:
        from novacron.client.aio import resources

        return resources.AsyncFloatingAddressCollection(self)

    @property
    def forwards(self) -> resources.AsyncForwardCollection:
        from novacron.client.aio import resources

        return resources.AsyncForwardCollection(self)

    @property
    def nodes(self) -> resources.AsyncNodeCollection:
        from novacron.client.aio import resources

        return resources.AsyncNodeCollection(self)

    @property
    def drills(self) -> resources.AsyncDrillCollection:
        from novacron.client.aio import resources

        return resources.AsyncDrillCollection(self)

    @property
    def drains(self) -> resources.AsyncDrainCollection:
        from novacron.client.aio import resources

        return resources.AsyncDrainCollection(self)

    @property
    def projects(self) -> resources.AsyncProjectCollection:
        from novacron.client.aio import resources

        return resources.AsyncProjectCollection(self)

    @property
    def users(self) -> resources.AsyncUserCollection:
        from novacron.client.aio import resources

        return resources.AsyncUserCollection(self)

    @property
    def grants(self) -> resources.AsyncGrantCollection:
        from novacron.client.aio import resources

        return resources.AsyncGrantCollection(self)

    @property
    def events(self) -> resources.AsyncEventCollection:
        from novacron.client.aio import resources

        return resources.AsyncEventCollection(self)
