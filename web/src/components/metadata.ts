/** What people write about an object: its display name, a description and tags. */
import { m } from "../i18n";
import { type Field, lines, type Values } from "./operation";

interface Described {
  display_name: string;
  description: string;
  tags: readonly string[];
}

export function metadataFields(object: Described): Field[] {
  return [
    { name: "display_name", label: m("Display name"), optional: true, value: object.display_name },
    { name: "description", label: m("Description"), optional: true, value: object.description },
    { name: "tags", label: m("Tags"), optional: true, value: object.tags.join(", "), help: m("With commas between them.") },
  ];
}

export function metadataOf(values: Values): { display_name: string; description: string; tags: string[] } {
  return { display_name: values["display_name"] ?? "", description: values["description"] ?? "", tags: lines(values["tags"]) };
}
