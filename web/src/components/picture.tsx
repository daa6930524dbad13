/** A picture that the API answered, shown for as long as it is on the page. */
import { type ReactElement, useEffect, useState } from "react";

export function Picture({ blob, alt }: { blob: Blob; alt: string }): ReactElement | null {
  const [address, setAddress] = useState<string | null>(null);
  useEffect(() => {
    const made = URL.createObjectURL(blob);
    setAddress(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return address === null ? null : <img className="nc-screenshot" src={address} alt={alt} />;
}
