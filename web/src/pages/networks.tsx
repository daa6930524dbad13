/** Networks, and what can reach VMs through them: security groups, floating addresses, forwarded ports. */
import type { ReactElement } from "react";
import { Link } from "wouter";
import { answered, client, type FloatingAddress, type Forward, type Me, type Network, type SecurityGroup } from "../api";
import { WhatReachesWhat } from "../charts/reach_view";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { metadataFields, metadataOf } from "../components/metadata";
import { checked, given, lines, number, type Operation, OperationBar } from "../components/operation";
import type { Column } from "../components/table";
import { addresses } from "../format";
import { m } from "../i18n";
import { useList } from "../list";
import { useAll } from "../live";
import { refusalFor } from "../session";
import { PROTOCOLS, ruleOf, ruleText } from "../rules";

const KINDS = Object.keys({ overlay: true, bridge: true } satisfies Record<Network["spec"]["kind"], true>);
const ENCRYPTION = Object.keys({ "between-sites": true, always: true, never: true } satisfies Record<Network["spec"]["encryption"], true>);

function createNetwork(me: Me): Operation {
  return {
    label: m("Create a network"),
    refusal: refusalFor(me, "write", me.project),
    fields: [
      { name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") },
      { name: "kind", label: m("Kind"), options: KINDS },
      { name: "subnet", label: m("Subnet"), optional: true, help: m("Such as 10.1.0.0/24; IPv6 is written alike.") },
      { name: "nat", label: m("Translate guests' addresses, so that they reach what the hosts reach"), kind: "check" },
      { name: "nameservers", label: m("Name servers"), optional: true },
      { name: "is_default", label: m("New VMs that name no network are in it"), kind: "check" },
      { name: "search_domains", label: m("Search domains"), optional: true },
      { name: "bridge", label: m("Bridge of the hosts"), optional: true, help: m("For a network of the kind bridge.") },
      { name: "vlan", label: m("VLAN"), kind: "number", optional: true },
      { name: "mtu", label: m("MTU in bytes"), kind: "number", optional: true },
      { name: "encryption", label: m("Encryption"), options: ENCRYPTION },
    ],
    command: (v) => `novacron network create ${v["name"]}${given(v["subnet"]) ? ` --subnet ${v["subnet"]}` : ""}${checked(v["nat"]) ? " --nat" : ""}${given(v["bridge"]) ? ` --bridge ${v["bridge"]}` : ""}${given(v["vlan"]) ? ` --vlan ${v["vlan"]}` : ""}`,
    run: (v) =>
      answered(
        client.POST("/api/v1/networks", {
          body: {
            name: v["name"] ?? "",
            kind: v["kind"] as Network["spec"]["kind"],
            subnet: given(v["subnet"]),
            nat: checked(v["nat"]),
            nameservers: lines(v["nameservers"]),
            search_domains: lines(v["search_domains"]),
            is_default: checked(v["is_default"]),
            bridge: given(v["bridge"]),
            vlan: number(v["vlan"]),
            mtu: number(v["mtu"]),
            encryption: v["encryption"] as Network["spec"]["encryption"],
          },
        }),
      ),
  };
}

function ofNetwork(me: Me, network: Network, isDefault: boolean): Operation[] {
  const at = { params: { path: { name: network.name } } };
  const refusal = refusalFor(me, "write", network.project);
  return [
    {
      label: m("Change"),
      subject: network.name,
      refusal,
      fields: [
        { name: "name", label: m("Name"), value: network.name },
        { name: "mtu", label: m("MTU in bytes"), kind: "number", value: String(network.mtu) },
        { name: "nameservers", label: m("Name servers"), optional: true, value: network.spec.nameservers.join(", ") },
        { name: "search_domains", label: m("Search domains"), optional: true, value: network.spec.search_domains.join(", ") },
        { name: "is_default", label: m("New VMs that name no network are in it"), kind: "check", value: String(isDefault) },
        ...metadataFields(network),
      ],
      command: (v) => `novacron network set ${network.name} --name ${v["name"]} --mtu ${v["mtu"]}`,
      run: (v) => {
        const nameservers = lines(v["nameservers"]);
        const search_domains = lines(v["search_domains"]);
        return answered(
          client.PATCH("/api/v1/networks/{name}", {
            ...at,
            body: {
              ...(v["name"] !== network.name && { name: v["name"] }),
              ...(Number(v["mtu"]) !== network.mtu && { mtu: Number(v["mtu"]) }),
              ...(nameservers.join() !== network.spec.nameservers.join() && { nameservers }),
              ...(search_domains.join() !== network.spec.search_domains.join() && { search_domains }),
              ...(checked(v["is_default"]) !== isDefault && { is_default: checked(v["is_default"]) }),
              ...metadataOf(v),
            },
          }),
        );
      },
    },
    {
      label: m("Delete"),
      subject: network.name,
      refusal,
      warning: m("The network is deleted. No VM may use it."),
      confirm: network.name,
      command: () => `novacron network delete ${network.name}`,
      run: () => answered(client.DELETE("/api/v1/networks/{name}", at)),
    },
  ];
}

export function Networks({ me }: { me: Me }): ReactElement {
  const list = useList("network", {}, (query) => answered(client.GET("/api/v1/networks", { params: { query } })));
  useList("project", {}, (query) => answered(client.GET("/api/v1/projects", { params: { query } })));
  const defaults = new Set(useAll("project").map((project) => project.default_network));
  const columns: readonly Column<Network>[] = [
    { title: m("Name"), width: "minmax(10rem, 2fr)", cell: (network) => network.name },
    { title: m("Kind"), width: "6rem", cell: (network) => network.spec.kind },
    { title: m("Addresses"), width: "minmax(9rem, 1fr)", cell: (network) => addresses(network.spec) },
    { title: m("Gateway"), width: "minmax(7rem, 1fr)", cell: (network) => network.gateway ?? "-" },
    { title: m("MTU"), width: "5rem", cell: (network) => network.mtu },
    { title: m("Project"), width: "minmax(7rem, 1fr)", cell: (network) => network.project },
    { title: m("Created"), width: "13rem", cell: (network) => <When at={network.created_at} />, text: (network) => network.created_at },
    { title: m("Trouble"), width: "minmax(7rem, 2fr)", cell: (network) => <span title={network.reason}>{network.reason}</span>, text: (network) => network.reason },
    { title: "", width: "11rem", cell: (network) => <OperationBar operations={ofNetwork(me, network, defaults.has(network.name))} /> },
  ];
  return (
    <div className="nc-page">
      <LiveList kind="network" title={m("Networks")} list={list} columns={columns} empty={m("There is no network.")} create={createNetwork(me)} />
      <WhatReachesWhat />
      <FloatingAddresses me={me} />
      <Forwards me={me} />
    </div>
  );
}

function ofAddress(me: Me, one: FloatingAddress): Operation[] {
  const at = { params: { path: { address: one.address } } };
  const refusal = refusalFor(me, "write", one.project);
  const subject = one.address;
  const move: Operation =
    one.vm === null
      ? {
          label: m("Attach"),
          subject,
          refusal,
          fields: [
            { name: "vm", label: m("VM"), help: m("Its name or id.") },
            { name: "network", label: m("Network"), optional: true, help: m("Needed if the VM is in several.") },
          ],
          command: (v) => `novacron floating-address attach ${one.address} ${v["vm"]}`,
          run: (v) => answered(client.POST("/api/v1/floating-addresses/{address}/actions/attach", { ...at, body: { vm: v["vm"] ?? "", network: given(v["network"]) } })),
        }
      : {
          label: m("Detach"),
          subject,
          refusal,
          warning: m("The address no longer leads to its VM, and its forwarded ports are removed."),
          undo: true,
          command: () => `novacron floating-address detach ${one.address}`,
          run: () => answered(client.POST("/api/v1/floating-addresses/{address}/actions/detach", at)),
        };
  return [
    move,
    { label: m("Describe"), subject, refusal, fields: metadataFields(one), run: (v) => answered(client.PATCH("/api/v1/floating-addresses/{address}", { ...at, body: metadataOf(v) })) },
    {
      label: m("Remove"),
      subject,
      refusal: refusal ?? (one.vm === null ? null : m("Detach it first.")),
      warning: m("The platform forgets this address."),
      confirm: one.address,
      command: () => `novacron floating-address remove ${one.address}`,
      run: () => answered(client.DELETE("/api/v1/floating-addresses/{address}", at)),
    },
  ];
}

function FloatingAddresses({ me }: { me: Me }): ReactElement {
  const list = useList("floating-address", {}, (query) => answered(client.GET("/api/v1/floating-addresses", { params: { query } })));
  const columns: readonly Column<FloatingAddress>[] = [
    { title: m("Address"), width: "minmax(9rem, 1fr)", cell: (one) => one.address },
    { title: m("VM"), width: "minmax(9rem, 1fr)", cell: (one) => (one.vm === null ? "-" : <Link href={`/vms/${one.vm}`}>{one.vm_name}</Link>), text: (one) => one.vm_name ?? "" },
    { title: m("Network"), width: "minmax(7rem, 1fr)", cell: (one) => one.network ?? "-" },
    { title: m("Project"), width: "minmax(7rem, 1fr)", cell: (one) => one.project },
    { title: m("Trouble"), width: "minmax(7rem, 2fr)", cell: (one) => one.reason },
    { title: "", width: "18rem", cell: (one) => <OperationBar operations={ofAddress(me, one)} /> },
  ];
  const add: Operation = {
    label: m("Add an address"),
    refusal: refusalFor(me, "write", me.project),
    fields: [{ name: "address", label: m("Address"), help: m("An unused address of the hosts' network.") }],
    command: (v) => `novacron floating-address add ${v["address"]}`,
    run: (v) => answered(client.POST("/api/v1/floating-addresses", { body: { address: v["address"] ?? "" } })),
  };
  return <LiveList kind="floating-address" title={m("Floating addresses")} list={list} columns={columns} empty={m("There is no floating address.")} create={add} level="h2" />;
}

function ofForward(me: Me, one: Forward): Operation[] {
  const at = { params: { path: { id: one.id } } };
  const refusal = refusalFor(me, "write", one.project);
  const subject = `${one.protocol} ${one.port} ${one.vm_name}`;
  return [
    { label: m("Describe"), subject, refusal, fields: metadataFields(one), run: (v) => answered(client.PATCH("/api/v1/forwards/{id}", { ...at, body: metadataOf(v) })) },
    {
      label: m("Delete"),
      subject,
      refusal,
      warning: m("The port is no longer forwarded."),
      command: () => `novacron forward delete ${one.id}`,
      run: () => answered(client.DELETE("/api/v1/forwards/{id}", at)),
    },
  ];
}

function Forwards({ me }: { me: Me }): ReactElement {
  const list = useList("forward", {}, (query) => answered(client.GET("/api/v1/forwards", { params: { query } })));
  const columns: readonly Column<Forward>[] = [
    { title: m("Network"), width: "minmax(7rem, 1fr)", cell: (one) => one.network },
    { title: m("Address"), width: "minmax(8rem, 1fr)", cell: (one) => one.address ?? "-" },
    { title: m("Protocol"), width: "6rem", cell: (one) => one.protocol },
    { title: m("Port"), width: "5rem", cell: (one) => one.port },
    { title: m("VM"), width: "minmax(9rem, 1fr)", cell: (one) => <Link href={`/vms/${one.vm}`}>{one.vm_name}</Link>, text: (one) => one.vm_name },
    { title: m("Its port"), width: "6rem", cell: (one) => one.vm_port },
    { title: m("Trouble"), width: "minmax(7rem, 2fr)", cell: (one) => one.reason },
    { title: "", width: "12rem", cell: (one) => <OperationBar operations={ofForward(me, one)} /> },
  ];
  const create: Operation = {
    label: m("Forward a port"),
    refusal: refusalFor(me, "write", me.project),
    fields: [
      { name: "vm", label: m("VM"), help: m("Its name or id.") },
      { name: "vm_port", label: m("Port of the VM"), kind: "number" },
      { name: "port", label: m("Port to forward"), kind: "number", optional: true, help: m("Empty: the same.") },
      { name: "protocol", label: m("Protocol"), options: PROTOCOLS.filter((protocol) => protocol === "tcp" || protocol === "udp") },
      { name: "address", label: m("Floating address"), optional: true, help: m("Empty: the gateway's.") },
      { name: "network", label: m("Network"), optional: true, help: m("Needed if the VM is in several.") },
    ],
    command: (v) => `novacron forward create ${v["vm"]} ${v["vm_port"]} --protocol ${v["protocol"]}`,
    run: (v) =>
      answered(
        client.POST("/api/v1/forwards", {
          body: { vm: v["vm"] ?? "", vm_port: Number(v["vm_port"]), port: number(v["port"]), protocol: v["protocol"] as Forward["protocol"], address: given(v["address"]), network: given(v["network"]) },
        }),
      ),
  };
  return <LiveList kind="forward" title={m("Forwarded ports")} list={list} columns={columns} empty={m("No port is forwarded.")} create={create} level="h2" />;
}

const RULES = { name: "rules", label: m("Rules"), kind: "lines", optional: true, help: m("One a line: in:tcp:443, in:tcp:8000-8099:10.0.0.0/8, in:any::@GROUP, out:udp:53. Only what a rule allows comes in.") } as const;

function ofGroup(me: Me, group: SecurityGroup): Operation[] {
  const at = { params: { path: { name: group.name } } };
  const refusal = refusalFor(me, "write", group.project);
  return [
    {
      label: m("Change"),
      subject: group.name,
      refusal,
      fields: [{ ...RULES, value: group.rules.map(ruleText).join("\n") }, ...metadataFields(group)],
      command: (v) => `novacron security-group set ${group.name}${lines(v["rules"]).map((rule) => ` --rule ${rule}`).join("")}`,
      run: (v) => answered(client.PATCH("/api/v1/security-groups/{name}", { ...at, body: { rules: lines(v["rules"]).map(ruleOf), ...metadataOf(v) } })),
    },
    {
      label: m("Delete"),
      subject: group.name,
      refusal,
      warning: m("The security group is deleted. No interface may use it."),
      confirm: group.name,
      command: () => `novacron security-group delete ${group.name}`,
      run: () => answered(client.DELETE("/api/v1/security-groups/{name}", at)),
    },
  ];
}

export function SecurityGroups({ me }: { me: Me }): ReactElement {
  const list = useList("security-group", {}, (query) => answered(client.GET("/api/v1/security-groups", { params: { query } })));
  const columns: readonly Column<SecurityGroup>[] = [
    { title: m("Name"), width: "minmax(9rem, 1fr)", cell: (group) => group.name },
    { title: m("Rules"), width: "minmax(16rem, 3fr)", cell: (group) => <span title={group.rules.map(ruleText).join("\n")}>{group.rules.map(ruleText).join(", ")}</span>, text: (group) => group.rules.map(ruleText).join(" ") },
    { title: m("Project"), width: "minmax(7rem, 1fr)", cell: (group) => group.project },
    { title: m("Description"), width: "minmax(8rem, 1fr)", cell: (group) => group.description },
    { title: "", width: "11rem", cell: (group) => <OperationBar operations={ofGroup(me, group)} /> },
  ];
  const create: Operation = {
    label: m("Create a security group"),
    refusal: refusalFor(me, "write", me.project),
    fields: [{ name: "name", label: m("Name") }, RULES],
    command: (v) => `novacron security-group create ${v["name"]}${lines(v["rules"]).map((rule) => ` --rule ${rule}`).join("")}`,
    run: (v) => answered(client.POST("/api/v1/security-groups", { body: { name: v["name"] ?? "", rules: lines(v["rules"]).map(ruleOf) } })),
  };
  return (
    <div className="nc-page">
      <LiveList kind="security-group" title={m("Security groups")} list={list} columns={columns} empty={m("There is no security group.")} create={create} />
    </div>
  );
}
