/** Creating a VM: the form, each node's verdict on it before, and the same as a command. */
import {
  ActionGroup,
  Button,
  Checkbox,
  Form,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  TextInput,
  Title,
} from "@patternfly/react-core";
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, type ReactElement, useState } from "react";
import { useLocation } from "wouter";
import { ApiError, answered, client, type CreateVm, type Me } from "../api";
import { Refusal, said } from "../components/notices";
import { useImages } from "./images";
import { t } from "../i18n";
import { useList } from "../list";
import { useAll } from "../live";

interface Fields {
  name: string;
  image: string;
  flavor: string;
  template: string;
  vcpus: string;
  memory: string;
  disk: string;
  address: string;
  network: string;
  project: string;
  ha: boolean;
}

const NO_NETWORK = "none";

/** The request that the fields stand for. What is empty is the platform's to choose. */
export function requestOf(fields: Fields): CreateVm {
  return {
    name: fields.name,
    ...(fields.image !== "" && { image: fields.image }),
    ...(fields.flavor !== "" && { flavor: fields.flavor }),
    ...(fields.template !== "" && { template: fields.template }),
    ...(fields.vcpus !== "" && { vcpus: Number(fields.vcpus) }),
    ...(fields.memory !== "" && { memory_mib: Number(fields.memory) }),
    ...(fields.disk !== "" && { disk_mib: Number(fields.disk) }),
    ...(fields.network !== "" && { nics: fields.network === NO_NETWORK ? [] : [{ network: fields.network }] }),
    ...(fields.address !== "" && { address: fields.address }),
    ...(fields.ha && { ha: true }),
  };
}

export function commandOf(fields: Fields): string {
  const { name, image, flavor, template, vcpus, memory, disk, address, network, project, ha } = fields;
  const parts = ["novacron vm create", name || "NAME"];
  if (image !== "" || template === "") parts.push("--image", image || "IMAGE");
  if (flavor !== "") parts.push("--flavor", flavor);
  if (template !== "") parts.push("--template", template);
  if (vcpus !== "") parts.push("--vcpus", vcpus);
  if (memory !== "") parts.push("--memory", memory);
  if (disk !== "") parts.push("--disk", disk);
  if (network !== "") parts.push("--network", network);
  if (address !== "") parts.push("--address", address);
  if (project !== "") parts.push("--project", project);
  if (ha) parts.push("--ha");
  return parts.join(" ");
}

const NEW: Fields = { name: "", image: "", flavor: "", template: "", vcpus: "1", memory: "256", disk: "", address: "", network: "", project: "", ha: false };

export function Create({ me }: { me: Me }): ReactElement {
  const [fields, setFields] = useState<Fields>(NEW);
  const [, go] = useLocation();
  const { images } = useImages();
  useList("flavor", {}, (paging) => answered(client.GET("/api/v1/flavors", { params: { query: paging } })));
  useList("template", {}, (paging) => answered(client.GET("/api/v1/templates", { params: { query: paging } })));
  const flavors = useAll("flavor").map(({ name }) => name).sort();
  const templates = useAll("template").map(({ name }) => name).sort();
  const query = fields.project === "" ? {} : { project: fields.project };
  const [key, setKey] = useState(() => crypto.randomUUID()); // the same form sent twice makes one VM
  const create = useMutation({
    mutationFn: () =>
      answered(client.POST("/api/v1/vms", { params: { query, header: { "Idempotency-Key": key } }, body: requestOf(fields) })),
    onSuccess: (vm) => {
      said(t("{name} is being created", { name: vm.name }));
      go(`/vms/${vm.id}`);
    },
  });
  const judge = useMutation({
    mutationFn: () => answered(client.POST("/api/v1/placements", { params: { query }, body: requestOf(fields) })),
  });
  const set = (change: Partial<Fields>): void => {
    setFields({ ...fields, ...change });
    setKey(crypto.randomUUID());
  };
  /** What a flavor or template may set begins empty: what is typed counts before them. */
  const begin = (change: { flavor: string } | { template: string }): void => {
    const { flavor, template } = { ...fields, ...change };
    set({ ...change, ...(flavor === "" && template === "" ? { vcpus: NEW.vcpus, memory: NEW.memory } : { vcpus: "", memory: "" }) });
  };
  const incomplete = fields.name === "" || (fields.image === "" && fields.template === "");
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    create.mutate();
  };
  const wrong = create.error instanceof ApiError ? create.error.field : null;
  const text = (id: keyof Fields & string, label: string, field: string, help = "", type: "text" | "number" = "text"): ReactElement => (
    <FormGroup label={label} fieldId={id}>
      <TextInput id={id} type={type} value={String(fields[id])} validated={wrong === field ? "error" : "default"} onChange={(_, value) => set({ [id]: value })} />
      {help !== "" && (
        <FormHelperText>
          <HelperText>
            <HelperTextItem>{help}</HelperTextItem>
          </HelperText>
        </FormHelperText>
      )}
    </FormGroup>
  );
  return (
    <Form onSubmit={submit} isWidthLimited>
      <Title headingLevel="h1">{t("Create a VM")}</Title>
      {create.error !== null && <Refusal title={t("The VM was not created")} error={create.error} />}
      {text("name", t("Name"), "name", t("Lower-case letters, digits and hyphens."))}
      <FormGroup label={t("Image")} fieldId="image">
        <FormSelect id="image" value={fields.image} validated={wrong === "image" ? "error" : "default"} onChange={(_, image) => set({ image })}>
          <FormSelectOption value="" label={t("Choose an image")} isPlaceholder />
          {images.map((image) => (
            <FormSelectOption key={image.name} value={image.name} label={image.description === "" ? image.name : `${image.name}: ${image.description}`} />
          ))}
        </FormSelect>
      </FormGroup>
      <FormGroup label={t("Flavor")} fieldId="flavor">
        <FormSelect id="flavor" value={fields.flavor} validated={wrong === "flavor" ? "error" : "default"} onChange={(_, flavor) => begin({ flavor })}>
          <FormSelectOption value="" label={t("None")} />
          {flavors.map((name) => (
            <FormSelectOption key={name} value={name} label={name} />
          ))}
        </FormSelect>
      </FormGroup>
      <FormGroup label={t("Template")} fieldId="template">
        <FormSelect id="template" value={fields.template} validated={wrong === "template" ? "error" : "default"} onChange={(_, template) => begin({ template })}>
          <FormSelectOption value="" label={t("None")} />
          {templates.map((name) => (
            <FormSelectOption key={name} value={name} label={name} />
          ))}
        </FormSelect>
      </FormGroup>
      {text("vcpus", t("Virtual CPUs"), "vcpus", "", "number")}
      {text("memory", t("Memory in MiB"), "memory_mib", "", "number")}
      {text("disk", t("Disk in MiB"), "disk_mib", t("Empty: as large as the image's."), "number")}
      {text("network", t("Network"), "nics", t("Empty: the default network of its project, if it has one. none: no network."))}
      {text("address", t("Address"), "address", t("With its prefix length, such as 10.77.0.10/24; for a VM without a network."))}
      <FormGroup label={t("Project")} fieldId="project">
        <FormSelect id="project" value={fields.project} onChange={(_, project) => set({ project })}>
          <FormSelectOption value="" label={t("Yours ({project})", { project: me.project })} />
          {Object.keys(me.projects).map((name) => (
            <FormSelectOption key={name} value={name} label={name} />
          ))}
        </FormSelect>
      </FormGroup>
      <Checkbox id="ha" label={t("High availability: start it on another node when its node fails")} isChecked={fields.ha} onChange={(_, ha) => set({ ha })} />
      <ActionGroup>
        <Button type="submit" isLoading={create.isPending} isDisabled={create.isPending || incomplete}>
          {t("Create")}
        </Button>
        <Button variant="secondary" isLoading={judge.isPending} isDisabled={judge.isPending || incomplete} onClick={() => judge.mutate()}>
          {t("Where could it run?")}
        </Button>
      </ActionGroup>
      {judge.error !== null && <Refusal title={t("Nodes can't be judged")} error={judge.error} />}
      {judge.data !== undefined && (
        <ul aria-label={t("Verdicts of the nodes")}>
          {judge.data.items.map((verdict) => (
            <li key={verdict.node}>
              {verdict.node}: {verdict.refusal ?? t("could take it")}
            </li>
          ))}
        </ul>
      )}
      <code className="nc-command" aria-label={t("The same as a command")}>
        {commandOf(fields)}
      </code>
    </Form>
  );
}
