/** One VM, from the server and then from the stream. */
import { useQuery } from "@tanstack/react-query";
import { ApiError, answered, client, type Vm } from "../api";
import { store, useConnection, useObject } from "../live";

/** Ask for the VM once; the stream keeps it current. */
export function useVm(id: string): { vm: Vm | undefined; error: unknown } {
  const state = useConnection();
  const query = useQuery({
    queryKey: ["object", "vm", id],
    enabled: state !== "connecting",
    queryFn: () =>
      store.asking(async () => {
        const at = store.revision;
        try {
          const parameters = { path: { ref: id }, query: at === 0 ? {} : { min_revision: at } };
          const vm = await answered(client.GET("/api/v1/vms/{ref}", { params: parameters }));
          store.admit("vm", [vm], Math.max(at, vm.revision));
          return vm.id;
        } catch (error) {
          if (error instanceof ApiError && error.status === 404) store.drop("vm", id);
          throw error;
        }
      }),
  });
  const vm = useObject("vm", id);
  return { vm, error: query.error };
}
