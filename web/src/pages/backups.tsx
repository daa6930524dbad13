/** Backups of VMs, the policies that make them, and the repositories that hold them. */
import { Alert, Label, type LabelProps } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { Link, useSearchParams } from "wouter";
import { answered, type Backup, type BackupPhase, type BackupPolicy, type BackupRepository, client, type Me, type Schemas } from "../api";
import { BY_PROJECT, FilterBar, useFilters } from "../components/filters";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { checked, type Field, given, lines, LinkButton, number, type Operation, OperationBar, type Values } from "../components/operation";
import { Picture } from "../components/picture";
import { Secret } from "../components/secret";
import type { Column } from "../components/table";
import { bytes, duration, time } from "../format";
import { m, t } from "../i18n";
import { useList } from "../list";
import { refusalFor } from "../session";
import { movesBy, useSorting } from "../sorting";
import { lookRefusal } from "./backup_look";

const COLOURS: Record<BackupPhase, NonNullable<LabelProps["color"]>> = {
  damaged: "red",
  deleting: "blue",
  failed: "red",
  kept: "green",
  making: "blue",
  verifying: "blue",
};
const PROOF_COLOURS: Record<string, NonNullable<LabelProps["color"]>> = { failed: "red", proved: "green" };
const RULES = ["last", "hourly", "daily", "weekly", "monthly", "yearly"] as const;
const KEEP_LABELS: Record<(typeof RULES)[number], string> = {
  last: m("Keep so many of the newest"),
  hourly: m("Keep one of each of so many hours"),
  daily: m("Keep one of each of so many days"),
  weekly: m("Keep one of each of so many weeks"),
  monthly: m("Keep one of each of so many months"),
  yearly: m("Keep one of each of so many years"),
};

export function Backups({ me }: { me: Me }): ReactElement {
  return (
    <div className="nc-page">
      <Policies me={me} />
      <Made me={me} />
      <Repositories me={me} />
    </div>
  );
}

function ofPolicy(me: Me, policy: BackupPolicy): Operation[] {
  const at = { params: { path: { ref: policy.id } } };
  const subject = policy.name;
  const refusal = refusalFor(me, "write", policy.project);
  const { spec } = policy;
  return [
    {
      label: m("Run now"),
      subject,
      refusal: refusal ?? (spec.enabled ? null : m("It is disabled.")),
      warning: m("A backup of each of its VMs is made now."),
      command: () => `novacron backup policy run ${policy.name}`,
      run: () => answered(client.POST("/api/v1/backup-policies/{ref}/actions/run", at)),
    },
    {
      label: m("Change"),
      subject,
      refusal,
      fields: [{ name: "enabled", label: m("Enabled"), kind: "check", value: String(spec.enabled) }, ...policyFields(policy)],
      command: (v) => `novacron backup policy set ${policy.name}${policyOptions(v)}`,
      run: (v) =>
        answered(
          client.PATCH("/api/v1/backup-policies/{ref}", {
            params: { ...at.params, header: { "If-Match": `"${policy.revision}"` } },
            body: { ...policyOf(v), ...(v["vms"] === spec.vms.join(", ") && { vms: spec.vms }), enabled: checked(v["enabled"]) },
          }),
        ),
    },
    {
      label: m("Delete"),
      subject,
      refusal,
      warning: m("Its VMs are no longer backed up by it. The backups that it made stay."),
      command: () => `novacron backup policy delete ${policy.name}`,
      run: () => answered(client.DELETE("/api/v1/backup-policies/{ref}", at)),
    },
  ];
}

function policyFields(policy?: BackupPolicy): Field[] {
  const spec = policy?.spec;
  return [
    { name: "repository", label: m("Repository"), value: policy?.repository_name ?? "" },
    { name: "schedule", label: m("Schedule"), value: spec?.schedule ?? "daily", help: m("hourly, daily, weekly, monthly, or five fields as in crontab.") },
    { name: "time_zone", label: m("Time zone"), value: spec?.time_zone ?? "UTC" },
    { name: "tags", label: m("Back up VMs with one of these tags"), optional: true, value: (spec?.tags ?? []).join(", "), help: m("With commas between them.") },
    { name: "vms", label: m("Back up these VMs"), optional: true, value: (spec?.vms ?? []).join(", "), help: m("Names or ids, with commas between them. Without VMs and tags: all VMs of the project.") },
    ...RULES.map((rule): Field => ({ name: rule, label: KEEP_LABELS[rule], kind: "number", optional: true, value: String(spec?.keep[rule] || "") })),
    { name: "prove_days", label: m("Prove each backup again after so many days"), kind: "number", optional: true, value: String(spec?.prove_days ?? ""), help: m("Empty: never. A VM made of each backup has to start.") },
    { name: "verify_days", label: m("Read each backup back again after so many days"), kind: "number", optional: true, value: String(spec === undefined ? 30 : (spec.verify_days ?? "")), help: m("Empty: never.") },
  ];
}

function keepOf(v: Values): Schemas["Keep"] {
  return Object.fromEntries(RULES.map((rule) => [rule, number(v[rule]) ?? 0])) as unknown as Schemas["Keep"];
}

function policyOf(v: Values): { repository: string; schedule: string; time_zone: string; tags: string[]; vms: string[]; keep: Schemas["Keep"]; verify_days: number | null; prove_days: number | null } {
  return {
    repository: v["repository"] ?? "",
    schedule: v["schedule"] ?? "",
    time_zone: v["time_zone"] ?? "",
    tags: lines(v["tags"]),
    vms: lines(v["vms"]),
    keep: keepOf(v),
    verify_days: number(v["verify_days"]) ?? null,
    prove_days: number(v["prove_days"]) ?? null,
  };
}

function policyOptions(v: Values): string {
  const keep = RULES.filter((rule) => given(v[rule]) !== undefined).map((rule) => ` --keep-${rule} ${v[rule]}`);
  const vms = lines(v["vms"]).map((vm) => ` --vm ${vm}`);
  return [` --repository ${v["repository"]} --schedule '${v["schedule"]}' --time-zone ${v["time_zone"]}`, given(v["tags"]) ? ` --tag ${lines(v["tags"]).join(",")}` : "", ...vms, ...keep, ` --verify-days ${given(v["verify_days"]) ?? "none"}`, ` --prove-days ${given(v["prove_days"]) ?? "none"}`].join("");
}

function coveredBy({ spec }: BackupPolicy): string {
  const named = spec.vms.length === 0 ? [] : [t("{count} named", { count: spec.vms.length })];
  return [...named, ...spec.tags].join(", ") || t("all VMs");
}

function Policies({ me }: { me: Me }): ReactElement {
  const columns: readonly Column<BackupPolicy>[] = [
    { title: m("Name"), width: "minmax(6rem, 1fr)", sort: "name", cell: (policy) => policy.name },
    { title: m("Schedule"), width: "minmax(7rem, 1fr)", sort: "spec.schedule", cell: ({ spec }) => (spec.enabled ? `${spec.schedule} ${spec.time_zone}` : t("disabled")) },
    { title: m("VMs"), width: "minmax(6rem, 1fr)", cell: coveredBy },
    { title: m("Repository"), width: "minmax(6rem, 1fr)", sort: "repository_name", cell: (policy) => policy.repository_name },
    { title: m("Keeps"), width: "minmax(7rem, 1fr)", cell: ({ spec }) => RULES.filter((rule) => (spec.keep[rule] ?? 0) > 0).map((rule) => `${rule} ${spec.keep[rule]}`).join(", ") || t("all") },
    { title: m("Promised age"), width: "7rem", sort: "promise_s", cell: (policy) => duration(policy.promise_s) },
    { title: m("Can't be backed up"), width: "minmax(6rem, 2fr)", sort: "problem_count", cell: (policy) => <Problems policy={policy} />, text: (policy) => String(policy.problem_count) },
    { title: "", width: "17rem", cell: (policy) => <OperationBar operations={ofPolicy(me, policy)} /> },
  ];
  const sorting = useSorting("policy-sort", "name", columns);
  const sort = sorting.by;
  const list = useList("backup-policy", { sort }, (query) => answered(client.GET("/api/v1/backup-policies", { params: { query: { sort, ...query } } })), { moves: movesBy(sort) });
  const create: Operation = {
    label: m("Create a policy"),
    refusal: refusalFor(me, "write", me.project),
    fields: [{ name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") }, ...policyFields()],
    command: (v) => `novacron backup policy create ${v["name"]}${policyOptions(v)}`,
    run: (v) => answered(client.POST("/api/v1/backup-policies", { body: { name: v["name"] ?? "", ...policyOf(v) } })),
  };
  return <LiveList kind="backup-policy" title={m("Backup policies")} list={list} sorting={sorting} columns={columns} empty={m("There is no policy: VMs are backed up only by hand.")} create={create} />;
}

function Problems({ policy }: { policy: BackupPolicy }): ReactElement {
  if (policy.problem_count === 0) return <>-</>;
  const named = policy.problems.map(({ vm_name, error }) => `${vm_name}: ${error}`).join("\n");
  return (
    <Label color="red" title={named}>
      {policy.problem_count}: {policy.problems[0]?.vm_name}
    </Label>
  );
}

function ofBackup(me: Me, backup: Backup): Operation[] {
  const at = { params: { path: { id: backup.id } } };
  const subject = `${backup.vm_name} ${backup.id}`;
  const refusal = refusalFor(me, "write", backup.project);
  const whole = backup.phase === "kept" ? null : m("Only a backup that is kept can be.");
  return [
    {
      label: m("Restore"),
      subject,
      refusal: refusal ?? whole,
      warning: m("A new VM is made of it. The VM that was backed up stays as it is."),
      fields: [
        { name: "name", label: m("Name of the new VM") },
        { name: "node", label: m("Node"), optional: true, help: m("Empty: the one that made the backup.") },
      ],
      command: (v) => `novacron backup restore ${backup.id} ${v["name"]}${given(v["node"]) ? ` --node ${v["node"]}` : ""}`,
      run: (v) => answered(client.POST("/api/v1/backups/{id}/actions/restore", { ...at, body: { name: v["name"] ?? "", node: given(v["node"]) } })),
    },
    {
      label: m("Restore in place"),
      subject,
      refusal: refusal ?? whole,
      warning: m("All that the VM has written to its disk since then is lost. It must be off."),
      confirm: backup.vm_name,
      command: () => `novacron backup restore ${backup.id} --in-place`,
      run: () => answered(client.POST("/api/v1/backups/{id}/actions/replace", at)),
    },
    {
      label: m("Verify"),
      subject,
      refusal: refusal ?? (backup.phase === "kept" || backup.phase === "damaged" ? null : m("Only a backup that is kept can be.")),
      command: () => `novacron backup verify ${backup.id}`,
      run: () => answered(client.POST("/api/v1/backups/{id}/actions/verify", at)),
    },
    {
      label: m("Prove"),
      subject,
      refusal: refusal ?? whole ?? (isBeingProved(backup) ? m("It is being proved.") : null),
      warning: m("A VM made of it, connected to nothing, has to start. It is deleted then."),
      fields: [
        { name: "line", label: m("Text on its serial console that shows that it has started"), optional: true, help: m("Empty: its guest agent answers.") },
        { name: "timeout_s", label: m("Seconds that it may take"), kind: "number", value: "600" },
      ],
      command: (v) => `novacron backup prove ${backup.id}${given(v["line"]) ? ` --probe-line '${v["line"]}'` : ""} --probe-timeout ${v["timeout_s"]}s`,
      run: (v) => answered(client.POST("/api/v1/backups/{id}/actions/prove", { ...at, body: { line: v["line"] ?? "", timeout_s: number(v["timeout_s"]) ?? 600 } })),
    },
    {
      label: m("Show its screen"),
      subject,
      refusal: refusalFor(me, "console", backup.project) ?? (backup.proof?.picture === true ? null : m("There is a picture once it was proved, if its VM has a display.")),
      command: () => `novacron backup picture ${backup.id} screen.png`,
      run: () => answered(client.GET("/api/v1/backups/{id}/picture", { ...at, parseAs: "blob" })),
      show: (blob: Blob) => <Picture blob={blob} alt={t("Display of {name}", { name: backup.vm_name })} />,
    },
    {
      label: m("Delete"),
      subject,
      refusal: refusal ?? (backup.phase === "deleting" ? m("It is being deleted.") : null),
      warning: m("Nobody can restore the VM from it any more."),
      confirm: backup.vm_name,
      command: () => `novacron backup delete ${backup.id}`,
      run: () => answered(client.DELETE("/api/v1/backups/{id}", at)),
    },
  ];
}

const FILTERS = [BY_PROJECT, { name: "repository", label: m("Repository") }, { name: "policy", label: m("Policy") }] as const;

function Made({ me }: { me: Me }): ReactElement {
  const [address] = useSearchParams();
  const vm = address.get("vm") ?? undefined;
  const filters = { ...useFilters(FILTERS), ...(vm !== undefined && { vm }) };
  const columns: readonly Column<Backup>[] = [
    { title: m("VM"), width: "minmax(7rem, 1fr)", sort: "vm_name", cell: (backup) => <Link href={`/vms/${backup.vm}`}>{backup.vm_name}</Link>, text: (backup) => backup.vm_name },
    { title: m("Made"), width: "12rem", sort: "created_at", cell: (backup) => <When at={backup.created_at} />, text: (backup) => backup.created_at },
    { title: m("Phase"), width: "11rem", sort: "phase", cell: (backup) => <Phase backup={backup} />, text: (backup) => backup.phase },
    { title: m("Written"), width: "6rem", sort: "result.written_bytes", cell: ({ result }) => <span title={readOf(result)}>{result.snapshot === "" ? "-" : bytes(result.written_bytes)}</span>, text: ({ result }) => String(result.written_bytes) },
    { title: m("Repository"), width: "minmax(6rem, 1fr)", sort: "repository_name", cell: (backup) => <span title={t("made by node {node}", { node: backup.node })}>{backup.repository_name}</span>, text: (backup) => backup.repository_name },
    { title: m("Error"), width: "minmax(6rem, 2fr)", cell: (backup) => <span title={backup.error}>{backup.error}</span>, text: (backup) => backup.error },
    { title: m("Node"), width: "minmax(7rem, 1fr)", sort: "node", extra: true, cell: (backup) => backup.node },
    { title: m("Project"), width: "minmax(6rem, 1fr)", sort: "project", extra: true, cell: (backup) => backup.project },
    { title: m("Mode"), width: "7rem", extra: true, cell: ({ result }) => <span title={result.mode_reason}>{result.mode}</span>, text: ({ result }) => result.mode },
    { title: m("Quiesced"), width: "6rem", extra: true, cell: ({ result }) => (result.quiesced ? t("yes") : t("no")) },
    { title: m("Disk"), width: "7rem", sort: "result.disk_bytes", extra: true, cell: ({ result }) => bytes(result.disk_bytes) },
    { title: m("Read"), width: "7rem", sort: "result.read_bytes", extra: true, cell: ({ result }) => bytes(result.read_bytes) },
    { title: m("Verified"), width: "13rem", sort: "verified_at", extra: true, cell: ({ verified_at }) => (verified_at === null ? "-" : <When at={verified_at} />), text: ({ verified_at }) => verified_at ?? "" },
    { title: m("Finished"), width: "13rem", sort: "finished_at", extra: true, cell: ({ finished_at }) => (finished_at === null ? "-" : <When at={finished_at} />), text: ({ finished_at }) => finished_at ?? "" },
    { title: m("Id"), width: "13rem", extra: true, cell: (backup) => backup.id },
    {
      title: "",
      width: "28rem",
      cell: (backup) => (
        <span className="nc-operations">
          <LinkButton label={m("Files")} subject={`${backup.vm_name} ${backup.id}`} href={`/backups/${backup.id}/files`} refusal={lookRefusal(me, backup)} />
          <OperationBar operations={ofBackup(me, backup)} />
        </span>
      ),
    },
  ];
  const sorting = useSorting("sort", "-created_at", columns);
  const sort = sorting.by;
  const list = useList("backup", { sort, ...filters }, (query) => answered(client.GET("/api/v1/backups", { params: { query: { sort, ...filters, ...query } } })), {
    belongs: (backup) => vm === undefined || backup.vm === vm,
    moves: movesBy(sort),
  });
  return (
    <LiveList kind="backup" title={m("Backups")} list={list} sorting={sorting} columns={columns} empty={m("There is no backup.")} level="h2">
      <FilterBar title={m("Backups")} filters={FILTERS} />
      {vm !== undefined && (
        <Alert isInline variant="info" title={t("Only backups of one VM are shown.")} actionLinks={<Link href="/backups">{t("Show all")}</Link>} />
      )}
    </LiveList>
  );
}

function isBeingProved({ proof }: Backup): boolean {
  return proof !== null && proof !== undefined && proof.phase !== "proved" && proof.phase !== "failed";
}

function proofOf(proof: NonNullable<Backup["proof"]>): string {
  return [time(proof.since), proof.answer, proof.error].filter((words) => words !== "").join(": ");
}

function Phase({ backup: { phase, verified_at, proof } }: { backup: Backup }): ReactElement {
  return (
    <span className="nc-operations">
      <Label color={COLOURS[phase] ?? "grey"}>{phase}</Label>
      {verified_at !== null && phase === "kept" && (
        <Label variant="outline" color="green" title={time(verified_at)}>
          {t("verified")}
        </Label>
      )}
      {proof !== null && proof !== undefined && phase === "kept" && (
        <Label variant="outline" color={PROOF_COLOURS[proof.phase] ?? "blue"} title={proofOf(proof)}>
          {proof.phase === "proved" ? t("proved") : proof.phase === "failed" ? t("not proved") : t("being proved")}
        </Label>
      )}
    </span>
  );
}

function readOf({ snapshot, read_bytes, mode, mode_reason }: Backup["result"]): string {
  return snapshot === "" ? "" : t("read: {read}, {mode}; {reason}", { read: bytes(read_bytes), mode, reason: mode_reason });
}

function ofRepository(me: Me, repository: BackupRepository): Operation[] {
  const at = { params: { path: { ref: repository.id } } };
  return [
    {
      label: m("Show the password"),
      subject: repository.name,
      refusal: refusalFor(me, "manage", repository.project),
      warning: m("Whoever has it can read all VMs in the repository, also with restic."),
      command: () => `novacron backup repository password ${repository.name}`,
      run: () => answered(client.GET("/api/v1/backup-repositories/{ref}/password", at)),
      show: ({ password }: { password: string }) => <Secret>{password}</Secret>,
    },
    {
      label: m("Free room"),
      subject: repository.name,
      refusal: refusalFor(me, "write", repository.project),
      warning: m("What deleted backups left is pruned on each node that has backups in it."),
      command: () => `novacron backup repository prune ${repository.name}`,
      run: () => answered(client.POST("/api/v1/backup-repositories/{ref}/actions/prune", at)),
    },
    {
      label: m("Change"),
      subject: repository.name,
      refusal: refusalFor(me, "write", repository.project),
      fields: [{ name: "prune_days", label: m("Free the room of deleted backups every so many days"), kind: "number", optional: true, value: String(repository.prune_days ?? ""), help: m("Empty: never.") }],
      command: (v) => `novacron backup repository set ${repository.name} --prune-days ${given(v["prune_days"]) ?? "none"}`,
      run: (v) => answered(client.PATCH("/api/v1/backup-repositories/{ref}", { ...at, body: { prune_days: number(v["prune_days"]) ?? null } })),
    },
    {
      label: m("Forget"),
      subject: repository.name,
      refusal: refusalFor(me, "write", repository.project),
      warning: m("Its directory stays on the nodes; its password does not. It must have no backups."),
      confirm: repository.name,
      command: () => `novacron backup repository delete ${repository.name}`,
      run: () => answered(client.DELETE("/api/v1/backup-repositories/{ref}", at)),
    },
  ];
}

function prunesOf({ prunes = [] }: BackupRepository): string {
  return prunes.map(({ node, at, freed, error }) => `${node}: ${error || (at ? `${freed || t("nothing")}, ${time(at)}` : t("not yet"))}`).join("; ") || "-";
}

function Repositories({ me }: { me: Me }): ReactElement {
  const columns: readonly Column<BackupRepository>[] = [
    { title: m("Name"), width: "minmax(8rem, 2fr)", sort: "name", cell: (repository) => repository.name },
    { title: m("Id"), width: "minmax(12rem, 2fr)", cell: (repository) => repository.id },
    { title: m("Project"), width: "minmax(7rem, 1fr)", sort: "project", cell: (repository) => repository.project },
    { title: m("Room freed"), width: "minmax(8rem, 2fr)", cell: prunesOf, text: prunesOf },
    { title: m("Created"), width: "13rem", sort: "created_at", cell: (repository) => <When at={repository.created_at} />, text: (repository) => repository.created_at },
    { title: "", width: "24rem", cell: (repository) => <OperationBar operations={ofRepository(me, repository)} /> },
  ];
  const sorting = useSorting("repository-sort", "name", columns);
  const sort = sorting.by;
  const list = useList("backup-repository", { sort }, (query) => answered(client.GET("/api/v1/backup-repositories", { params: { query: { sort, ...query } } })), { moves: movesBy(sort) });
  const create: Operation = {
    label: m("Create a repository"),
    refusal: refusalFor(me, "write", me.project),
    fields: [{ name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") }],
    command: (v) => `novacron backup repository create ${v["name"]}`,
    run: (v) => answered(client.POST("/api/v1/backup-repositories", { body: { name: v["name"] ?? "" } })),
  };
  return <LiveList kind="backup-repository" title={m("Backup repositories")} list={list} sorting={sorting} columns={columns} empty={m("There is no repository.")} create={create} level="h2" />;
}
