/** What can be done with a VM, and why not where it can't. */
import { answered, client, type Vm, type VmState } from "./api";
import { m } from "./i18n";

export interface VmAction {
  id: "start" | "stop" | "reboot" | "kill" | "delete";
  label: string;
  /** What happens, as a question is asked about it; null: nothing is asked. */
  warning: string | null;
  /** What can't be undone asks for a name to be typed. */
  final: boolean;
  command: (vm: Vm) => string;
  request: (vm: Vm) => string;
  /** Why it can't be done now, in words; null: it can. */
  refusal: (vm: Vm) => string | null;
  run: (vm: Vm) => Promise<unknown>;
}

/** Whether a guest's processor runs, or is about to. A state that is missing here does not compile. */
const ON: Record<VmState, boolean> = {
  absent: false,
  failed: false,
  paused: true,
  pending: false,
  running: true,
  starting: true,
  stopped: false,
  stopping: true,
  unknown: true,
};

function busy(vm: Vm): string | null {
  if (vm.deleting) return m("The VM is being deleted.");
  if (vm.unreconciled != null) return m("A node and the database disagree about this VM: adopt or forget it first.");
  return null;
}

const path = (vm: Vm): { params: { path: { ref: string } } } => ({ params: { path: { ref: vm.id } } });
const post = (vm: Vm, action: string): string => `POST /api/v1/vms/${vm.id}/actions/${action}`;

export const ACTIONS: readonly VmAction[] = [
  {
    id: "start",
    label: m("Start"),
    warning: null,
    final: false,
    command: (vm) => `novacron vm start ${vm.name}`,
    request: (vm) => post(vm, "start"),
    refusal: (vm) =>
      busy(vm) ??
      (vm.spec.power === "running" && ON[vm.status.state] && vm.status.state !== "paused" ? m("The VM is on already.") : null),
    run: (vm) => answered(client.POST("/api/v1/vms/{ref}/actions/start", path(vm))),
  },
  {
    id: "stop",
    label: m("Stop"),
    warning: m("The guest is asked to power off, and is forced to after 15 s."),
    final: false,
    command: (vm) => `novacron vm stop ${vm.name}`,
    request: (vm) => post(vm, "stop"),
    refusal: (vm) => busy(vm) ?? (vm.spec.power === "stopped" ? m("The VM is off, or is about to be.") : null),
    run: (vm) => answered(client.POST("/api/v1/vms/{ref}/actions/stop", path(vm))),
  },
  {
    id: "reboot",
    label: m("Reboot"),
    warning: m("The guest reboots; without a guest agent it is reset."),
    final: false,
    command: (vm) => `novacron vm reboot ${vm.name}`,
    request: (vm) => post(vm, "reboot"),
    refusal: (vm) => busy(vm) ?? (vm.status.state === "running" ? null : m("Only a VM that runs can reboot.")),
    run: (vm) => answered(client.POST("/api/v1/vms/{ref}/actions/reboot", path(vm))),
  },
  {
    id: "kill",
    label: m("Kill"),
    warning: m("The VM is off at once, as if its power was cut: what the guest has not written is lost."),
    final: false,
    command: (vm) => `novacron vm stop ${vm.name} --force`,
    request: (vm) => `${post(vm, "stop")} {"timeout_s": 0}`,
    refusal: (vm) => busy(vm) ?? (ON[vm.status.state] ? null : m("The VM is off.")),
    run: (vm) => answered(client.POST("/api/v1/vms/{ref}/actions/stop", { ...path(vm), body: { timeout_s: 0 } })),
  },
  {
    id: "delete",
    label: m("Delete"),
    warning: m("The VM, its disk and its snapshots are deleted. Nobody can undo that."),
    final: true,
    command: (vm) => `novacron vm delete ${vm.name}`,
    request: (vm) => `DELETE /api/v1/vms/${vm.id}`,
    refusal: (vm) => (vm.deleting ? m("The VM is being deleted.") : vm.spec.protected ? m("The VM is protected.") : null),
    run: (vm) => answered(client.DELETE("/api/v1/vms/{ref}", path(vm))),
  },
];

/** How many requests of one bulk action are on their way at once. */
const AT_ONCE = 6;

export interface Outcome {
  vm: Vm;
  error: unknown;
}

/** Do it with each of them; return what failed. */
export async function runOn(action: VmAction, vms: readonly Vm[]): Promise<Outcome[]> {
  const queue = [...vms];
  const failed: Outcome[] = [];
  const worker = async (): Promise<void> => {
    for (let vm = queue.shift(); vm !== undefined; vm = queue.shift()) {
      try {
        await action.run(vm);
      } catch (error) {
        failed.push({ vm, error });
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, vms.length) }, worker));
  return failed;
}
