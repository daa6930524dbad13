// Creates, lists, watches and deletes a VM with the types that openapi-typescript makes of the document.

import createClient from "openapi-fetch";
import type { paths } from "./api.js";

declare const process: { argv: string[] };

const [url, token, name] = process.argv.slice(2);
if (url === undefined || token === undefined || name === undefined) {
  throw new Error("usage: client.js URL TOKEN NAME");
}

const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${token}` } });

const made = await client.POST("/api/v1/vms", {
  params: { header: { "Idempotency-Key": name } },
  body: { name, image: "tiny", memory_mib: 128 },
});
if (made.error !== undefined) {
  throw new Error(`${made.error.title}: ${made.error.detail}`);
}
const page = await client.GET("/api/v1/vms", { params: { query: { name } } });
if (page.data?.items[0]?.id !== made.data.id) {
  throw new Error("the VM is not in the list");
}
let vm = made.data;
while (vm.status.state !== "running") {
  const newer = await client.GET("/api/v1/vms/{ref}", {
    params: { path: { ref: vm.id }, query: { newer_than: vm.revision, timeout_s: 30 } },
  });
  if (newer.error !== undefined) {
    throw new Error(newer.error.detail);
  }
  vm = newer.data;
}
console.log(vm.name, vm.status.state, vm.node);
const deleted = await client.DELETE("/api/v1/vms/{ref}", {
  params: { path: { ref: vm.id }, query: { wait: 30 } },
});
if (deleted.data?.deleting !== true) {
  throw new Error("the VM is not deleted");
}
