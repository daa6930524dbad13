/** The hosts that VMs run on. */
import { Button, Label, Title } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { answered, client, type Me, type Node } from "../api";
import { refused, said } from "../components/notices";
import { type Column, LiveTable } from "../components/table";
import { mib } from "../format";
import { type List, useList, useWhole } from "../list";
import { may } from "../session";

export function useNodes(): List {
  const sort = "name";
  return useWhole(useList("node", { sort }, (query) => answered(client.GET("/api/v1/nodes", { params: { query: { sort, ...query } } })), { moves: (old, now) => old.name !== now.name }));
}

const ACTIONS = { cordon: "cordoned", uncordon: "open for VMs again", drain: "being drained" } as const;

async function act(node: Node, action: keyof typeof ACTIONS): Promise<void> {
  const at = { params: { path: { name: node.name } } };
  try {
    if (action === "drain") await answered(client.POST("/api/v1/nodes/{name}/actions/drain", at));
    else if (action === "cordon") await answered(client.POST("/api/v1/nodes/{name}/actions/cordon", at));
    else await answered(client.POST("/api/v1/nodes/{name}/actions/uncordon", at));
    said(`Node ${node.name} is ${ACTIONS[action]}`);
  } catch (error) {
    refused(`${action}: ${node.name}`, error);
  }
}

export function NodeState({ node }: { node: Node }): ReactElement {
  if (!node.status.ready) return <Label color="red">not ready</Label>;
  if (node.spec.draining) return <Label color="orange">draining</Label>;
  if (node.spec.cordoned) return <Label color="yellow">cordoned</Label>;
  return <Label color="green">ready</Label>;
}

function columns(me: Me): readonly Column<Node>[] {
  const operates = may(me, "operate", null);
  return [
    { title: "Name", width: "minmax(10rem, 2fr)", cell: (node) => node.name },
    { title: "State", width: "8rem", cell: (node) => <NodeState node={node} /> },
    { title: "Why", width: "minmax(9rem, 2fr)", cell: (node) => <span title={node.status.reason}>{node.status.reason}</span> },
    { title: "Site", width: "minmax(6rem, 1fr)", cell: (node) => node.spec.site },
    { title: "CPUs", width: "5rem", cell: (node) => node.status.reported?.cpus ?? node.status.inventory?.cpus ?? "-" },
    { title: "Memory", width: "7rem", cell: (node) => mib(node.status.reported?.memory_mib ?? node.status.inventory?.memory_mib ?? 0) },
    { title: "QEMU", width: "6rem", cell: (node) => node.status.inventory?.qemu_version ?? "-" },
    { title: "Runs with", width: "6rem", cell: (node) => node.status.inventory?.accelerator.kind ?? "-" },
    {
      title: "Do",
      width: "13rem",
      cell: (node) =>
        !operates ? null : node.spec.cordoned ? (
          <Button size="sm" variant="secondary" onClick={() => void act(node, "uncordon")}>
            Uncordon
          </Button>
        ) : (
          <>
            <Button size="sm" variant="secondary" onClick={() => void act(node, "cordon")}>
              Cordon
            </Button>{" "}
            <Button size="sm" variant="secondary" onClick={() => void act(node, "drain")}>
              Drain
            </Button>
          </>
        ),
    },
  ];
}

export function Nodes({ me }: { me: Me }): ReactElement {
  return (
    <div className="nc-page">
      <Title headingLevel="h1">Nodes</Title>
      <LiveTable kind="node" label="Nodes" list={useNodes()} columns={columns(me)} empty="No host has joined yet." />
    </div>
  );
}
