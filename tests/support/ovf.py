"""OVF descriptors, built from their parts."""

from __future__ import annotations

OVF_1 = "http://schemas.dmtf.org/ovf/envelope/1"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
CPUS = (
    "<Item><r:InstanceID>1</r:InstanceID><r:ResourceType>3</r:ResourceType>"
    "<r:VirtualQuantity>2</r:VirtualQuantity></Item>"
)
CD = "<Item><r:ElementName>CD</r:ElementName><r:InstanceID>8</r:InstanceID><r:ResourceType>15</r:ResourceType></Item>"
SCSI = "<Item><r:InstanceID>5</r:InstanceID><r:ResourceType>6</r:ResourceType></Item>"


def memory(quantity: str, units: str, attributes: str = "") -> str:
    return (
        f"<Item {attributes}><r:AllocationUnits>{units}</r:AllocationUnits><r:InstanceID>2</r:InstanceID>"
        f"<r:ResourceType>4</r:ResourceType><r:VirtualQuantity>{quantity}</r:VirtualQuantity></Item>"
    )


def drive(disk: str, address: int = 0, kind: str = "disk") -> str:
    return (
        f"<Item><r:AddressOnParent>{address}</r:AddressOnParent><r:HostResource>ovf:/{kind}/{disk}</r:HostResource>"
        f"<r:InstanceID>d{disk}</r:InstanceID><r:Parent>5</r:Parent><r:ResourceType>17</r:ResourceType></Item>"
    )


def descriptor(
    hardware: str, *, name: str = "web", head: str = "", tail: str = "", namespace: str = OVF_1,
    files: str = '<File o:id="f1" o:href="one.vmdk"/><File o:id="f2" o:href="two.vmdk" o:chunkSize="1000"/>',
    disks: str = '<Disk o:diskId="v1" o:fileRef="f1" o:capacity="8" o:capacityAllocationUnits="byte * 2^30"/>'
    '<Disk o:diskId="v2" o:fileRef="f2" o:capacity="1000000"/><Disk o:diskId="v3" o:capacity="${size}"'
    ' o:capacityAllocationUnits="GigaBytes"/>',
) -> bytes:  # fmt: skip
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="{namespace}" xmlns:o="{namespace}" xmlns:r="{RASD}" xmlns:vmw="http://www.vmware.com/schema/ovf">
<References>{files}</References><DiskSection>{disks}</DiskSection>{head}
<VirtualSystem o:id="vm"><Name>{name}</Name><!-- a comment -->
<ProductSection><Property o:key="size" o:value="16"/></ProductSection>
<VirtualHardwareSection>{hardware}</VirtualHardwareSection>{tail}</VirtualSystem></Envelope>""".encode()
