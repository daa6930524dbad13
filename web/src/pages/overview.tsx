/** How the platform is: nodes, what is under way, what needs a person. */
import { Alert, Card, CardBody, CardTitle, Title } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { Link } from "wouter";
import { answered, client, type Me } from "../api";
import { isUnderWay } from "../components/phases";
import { mib } from "../format";
import { useList } from "../list";
import { useAll } from "../live";
import { EventTable } from "./events";
import { MigrationProgress } from "./migrations";
import { NodeState, useNodes } from "./nodes";
import { t } from "../i18n";

export function Overview({ me }: { me: Me }): ReactElement {
  const sort = "-created_at";
  useNodes(me);
  useList("migration", { sort }, (query) => answered(client.GET("/api/v1/migrations", { params: { query: { sort, ...query } } })));
  const nodes = useAll("node");
  const moving = useAll("migration").filter((migration) => isUnderWay(migration.phase));
  const troubled = nodes.filter((node) => !node.status.ready || node.status.unreconciled_vms > 0);
  const cpus = nodes.reduce((sum, node) => sum + (node.status.reported?.cpus ?? node.status.inventory?.cpus ?? 0), 0);
  const memory = nodes.reduce((sum, node) => sum + (node.status.reported?.memory_mib ?? node.status.inventory?.memory_mib ?? 0), 0);
  return (
    <div className="nc-page">
      <Title headingLevel="h1">{t("Overview")}</Title>
      {troubled.map((node) => (
        <Alert key={node.name} isInline variant="danger" title={t("Node {name} needs a person", { name: node.name })}>
          {node.status.reason || t("VMs of it that can't be reconciled with the database: {count}.", { count: node.status.unreconciled_vms })}
        </Alert>
      ))}
      <div className="nc-cards">
        <Card>
          <CardTitle component="h2">{t("Capacity")}</CardTitle>
          <CardBody>
            {t("Nodes: {nodes}. Processors: {cpus}. Memory: {memory}.", { nodes: nodes.length, cpus, memory: mib(memory) })}
          </CardBody>
        </Card>
        <Card>
          <CardTitle component="h2">{t("Nodes")}</CardTitle>
          <CardBody>
            {nodes.slice(0, 20).map((node) => (
              <div key={node.name}>
                {node.name} <NodeState node={node} />
              </div>
            ))}
            <Link href="/nodes">{t("All nodes")}</Link>
          </CardBody>
        </Card>
        <Card>
          <CardTitle component="h2">{t("Under way")}</CardTitle>
          <CardBody>
            {moving.length === 0 && t("Nothing moves.")}
            {moving.slice(0, 10).map((migration) => (
              <div key={migration.id}>
                <Link href={`/vms/${migration.vm}`}>{migration.vm_name}</Link>
                <MigrationProgress migration={migration} me={me} />
              </div>
            ))}
          </CardBody>
        </Card>
      </div>
      <Title headingLevel="h2">{t("Latest events")}</Title>
      <EventTable />
    </div>
  );
}
