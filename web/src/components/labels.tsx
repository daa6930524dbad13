/** States as coloured labels. A state that the contract has and this page does not know fails the build. */
import { Label, type LabelProps } from "@patternfly/react-core";
import type { ReactElement } from "react";
import type { MigrationPhase, VmState, VolumePhase } from "../api";
import { time, utc } from "../format";

type Colour = NonNullable<LabelProps["color"]>;

const OF_VM: Record<VmState, Colour> = {
  absent: "grey",
  failed: "red",
  paused: "yellow",
  pending: "blue",
  running: "green",
  starting: "blue",
  stopped: "grey",
  stopping: "blue",
  unknown: "orange",
};
export const VM_STATES = Object.keys(OF_VM) as VmState[];

const OF_MIGRATION: Record<MigrationPhase, Colour> = {
  aborted: "grey",
  completed: "green",
  failed: "red",
  pending: "blue",
  preparing: "blue",
  transferring: "blue",
};

const OF_VOLUME: Record<VolumePhase, Colour> = {
  creating: "blue",
  deleted: "grey",
  deleting: "blue",
  failed: "red",
  ready: "green",
};

// A newer server may answer with a state that this page does not know yet.
const known = <S extends string>(colours: Record<S, Colour>, state: S): Colour => colours[state] ?? "grey";

export function VmStateLabel({ state, deleting = false }: { state: VmState; deleting?: boolean }): ReactElement {
  return <Label color={deleting ? "orange" : known(OF_VM, state)}>{deleting ? "deleting" : state}</Label>;
}

export function MigrationLabel({ phase }: { phase: MigrationPhase }): ReactElement {
  return <Label color={known(OF_MIGRATION, phase)}>{phase}</Label>;
}

export function VolumeLabel({ phase }: { phase: VolumePhase }): ReactElement {
  return <Label color={known(OF_VOLUME, phase)}>{phase}</Label>;
}

export function When({ at }: { at: string }): ReactElement {
  return (
    <time dateTime={at} title={utc(at)}>
      {time(at)}
    </time>
  );
}
