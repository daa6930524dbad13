/** Moving a VM: each node's verdict in words, a forecast before, and the move. */
import { Button, FormSelect, FormSelectOption, Title } from "@patternfly/react-core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { type ReactElement, useState } from "react";
import { answered, client, type Vm } from "../api";
import { Refusal, refused, said } from "../components/notices";
import { bytes, duration } from "../format";
import { t } from "../i18n";

export function MigrateVm({ vm }: { vm: Vm }): ReactElement {
  const [open, setOpen] = useState(false);
  return (
    <>
      <Title headingLevel="h2">{t("Migration")}</Title>
      <div className="nc-bar">
        <Button variant="secondary" aria-expanded={open} onClick={() => setOpen(!open)}>
          {open ? t("Not now") : t("Migrate this VM")}
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
      said(t("The migration of {name} has been accepted", { name: vm.name }));
      close();
    },
    onError: (error) => refused(t("{name} was not migrated", { name: vm.name }), error),
  });
  if (verdicts.error !== null) return <Refusal title={t("Nodes can't be judged")} error={verdicts.error} />;
  const items = (verdicts.data?.items ?? []).filter((verdict) => verdict.node !== vm.node);
  return (
    <div className="nc-page">
      <FormSelect aria-label={t("Target")} value={target} onChange={(_, value) => setTarget(value)}>
        <FormSelectOption value="" label={t("The platform chooses")} />
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
          {t("Migrate")}
        </Button>
        <Button variant="secondary" isLoading={forecast.isPending} isDisabled={forecast.isPending} onClick={() => forecast.mutate()}>
          {t("Forecast")}
        </Button>
        <code>{`novacron vm migrate ${vm.name}${target === "" ? "" : ` --to ${target}`}`}</code>
      </div>
      {forecast.error !== null && <Refusal title={t("There is no forecast")} error={forecast.error} />}
      {forecast.data !== undefined && (
        <p role="status">
          {t("To {target}: {memory} of memory and {disks} of disks, over a path of {rate}/s.", {
            target: forecast.data.target,
            memory: bytes(forecast.data.move.memory_bytes),
            disks: bytes(forecast.data.move.disk_bytes),
            rate: bytes(forecast.data.move.path.rate_bytes_per_s),
          })}{" "}
          {forecast.data.move.forecast.converges
            ? t("It takes about {total}; the guest stands still for about {downtime}.", {
                total: duration(forecast.data.move.forecast.total_s),
                downtime: duration(forecast.data.move.forecast.downtime_ms / 1000),
              })
            : t("It would not end: {reason}", { reason: forecast.data.move.forecast.reason })}
        </p>
      )}
    </div>
  );
}
