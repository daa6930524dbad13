/** Moving a VM: each node's verdict in words, a forecast before, and the move. */
import { Button, FormSelect, FormSelectOption, Title } from "@patternfly/react-core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { type ReactElement, useState } from "react";
import { answered, client, type Vm } from "../api";
import { Refusal, refused, said } from "../components/notices";
import { bytes, duration } from "../format";

export function MigrateVm({ vm }: { vm: Vm }): ReactElement {
  const [open, setOpen] = useState(false);
  return (
    <>
      <Title headingLevel="h2">Migration</Title>
      <div className="nc-bar">
        <Button variant="secondary" aria-expanded={open} onClick={() => setOpen(!open)}>
          {open ? "Not now" : "Migrate this VM"}
        </Button>
      </div>
      {open && <Targets vm={vm} close={() => setOpen(false)} />}
    </>
  );
}

function Targets({ vm, close }: { vm: Vm; close: () => void }): ReactElement {
  const [target, setTarget] = useState("");
  const at = { params: { path: { ref: vm.id } } };
  const verdicts = useQuery({
    queryKey: ["placement", vm.id, vm.node],
    queryFn: () => answered(client.GET("/api/v1/vms/{ref}/placement", at)),
  });
  const body = target === "" ? {} : { target };
  const forecast = useMutation({
    mutationFn: () => answered(client.POST("/api/v1/vms/{ref}/actions/foresee-migration", { ...at, body })),
  });
  const migrate = useMutation({
    mutationFn: () => answered(client.POST("/api/v1/vms/{ref}/actions/migrate", { ...at, body })),
    onSuccess: () => {
      said(`The migration of ${vm.name} has been accepted`);
      close();
    },
    onError: (error) => refused(`${vm.name} was not migrated`, error),
  });
  if (verdicts.error !== null) return <Refusal title="Nodes can't be judged" error={verdicts.error} />;
  const items = (verdicts.data?.items ?? []).filter((verdict) => verdict.node !== vm.node);
  return (
    <div className="nc-page">
      <FormSelect aria-label="Target" value={target} onChange={(_, value) => setTarget(value)}>
        <FormSelectOption value="" label="The platform chooses" />
        {items.map((verdict) => (
          <FormSelectOption
            key={verdict.node}
            value={verdict.node}
            label={verdict.refusal === null ? verdict.node : `${verdict.node}: ${verdict.refusal}`}
            isDisabled={verdict.refusal !== null}
          />
        ))}
      </FormSelect>
      <div className="nc-bar">
        <Button isLoading={migrate.isPending} isDisabled={migrate.isPending} onClick={() => migrate.mutate()}>
          Migrate
        </Button>
        <Button variant="secondary" isLoading={forecast.isPending} isDisabled={forecast.isPending} onClick={() => forecast.mutate()}>
          Forecast
        </Button>
        <code>{`novacron vm migrate ${vm.name}${target === "" ? "" : ` --to ${target}`}`}</code>
      </div>
      {forecast.error !== null && <Refusal title="There is no forecast" error={forecast.error} />}
      {forecast.data !== undefined && (
        <p role="status">
          To {forecast.data.target}: {bytes(forecast.data.move.memory_bytes)} of memory and{" "}
          {bytes(forecast.data.move.disk_bytes)} of disks, over a path of {bytes(forecast.data.move.path.rate_bytes_per_s)}/s
          {forecast.data.move.forecast.converges
            ? `, take about ${duration(forecast.data.move.forecast.total_s)}; the guest stands still for about ${duration(forecast.data.move.forecast.downtime_ms / 1000)}.`
            : `. It would not end: ${forecast.data.move.forecast.reason}`}
        </p>
      )}
    </div>
  );
}
