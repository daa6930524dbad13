/** Moving a VM: each node's verdict in words, a forecast before, and the move. */
import { Button, FormSelect, FormSelectOption, TextInput, Title } from "@patternfly/react-core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { type ReactElement, useState } from "react";
import { answered, client, type Vm } from "../api";
import { When } from "../components/labels";
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
      <ScheduledMove vm={vm} />
      {open && <Targets vm={vm} close={() => setOpen(false)} />}
    </>
  );
}

/** When the VM moves by itself, why then, and the way to take that back. */
function ScheduledMove({ vm }: { vm: Vm }): ReactElement | null {
  const cancel = useMutation({
    mutationFn: () => answered(client.POST("/api/v1/vms/{ref}/actions/unschedule-migration", { params: { path: { ref: vm.id } } })),
    onSuccess: () => said(t("{name} stays where it is", { name: vm.name })),
    onError: (error) => refused(t("The move of {name} is still scheduled", { name: vm.name }), error),
  });
  const move = vm.scheduled_move;
  if (move == null) return null;
  return (
    <div className="nc-bar">
      <p>
        {t("Moves to {target} at", { target: move.target ?? t("the best node") })} <When at={move.begins_at} />: {move.why}
        {move.refusal !== null && `. ${t("Not yet: {why}", { why: move.refusal })}`}
      </p>
      <Button variant="secondary" isLoading={cancel.isPending} isDisabled={cancel.isPending} onClick={() => cancel.mutate()}>
        {t("Do not move it")}
      </Button>
    </div>
  );
}

/** What a field for a local time holds, as the API and the command line take it. */
function moment(local: string): string | undefined {
  return local === "" ? undefined : new Date(local).toISOString();
}

/** The command line that asks for the same. */
function command(name: string, options: Record<string, string | undefined>): string {
  const given = Object.entries(options).filter(([, value]) => value);
  return ["novacron vm migrate", name, ...given.flat()].join(" ");
}

function Targets({ vm, close }: { vm: Vm; close: () => void }): ReactElement {
  const [target, setTarget] = useState("");
  const [notBefore, setNotBefore] = useState("");
  const [deadline, setDeadline] = useState("");
  const isLater = notBefore !== "" || deadline !== "";
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
    mutationFn: async (): Promise<void> => {
      if (isLater) {
        const when = { not_before: moment(notBefore), deadline: moment(deadline) };
        await answered(client.POST("/api/v1/vms/{ref}/actions/schedule-migration", { ...at, body: { ...body, ...when } }));
      } else {
        await answered(client.POST("/api/v1/vms/{ref}/actions/migrate", { ...at, body }));
      }
    },
    onSuccess: () => {
      said(isLater ? t("The migration of {name} is scheduled", { name: vm.name }) : t("The migration of {name} has been accepted", { name: vm.name }));
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
        <label>
          {t("Not before")} <TextInput type="datetime-local" value={notBefore} onChange={(_, value) => setNotBefore(value)} />
        </label>
        <label>
          {t("Done by")} <TextInput type="datetime-local" value={deadline} onChange={(_, value) => setDeadline(value)} />
        </label>
      </div>
      <div className="nc-bar">
        <Button isLoading={migrate.isPending} isDisabled={migrate.isPending} onClick={() => migrate.mutate()}>
          {t("Migrate")}
        </Button>
        <Button variant="secondary" isLoading={forecast.isPending} isDisabled={forecast.isPending} onClick={() => forecast.mutate()}>
          {t("Forecast")}
        </Button>
        <code>{command(vm.name, { "--to": target, "--not-before": moment(notBefore), "--deadline": moment(deadline) })}</code>
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
            : t("It would not end: {reason}", { reason: forecast.data.move.forecast.reason })}{" "}
          {forecast.data.cheapest_at != null && (
            <>
              {t("Cheapest within a day:")} <When at={forecast.data.cheapest_at} />: {forecast.data.cheapest_why}
            </>
          )}
        </p>
      )}
    </div>
  );
}
