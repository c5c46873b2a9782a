/* Custom resources against models made from their CRDs: objects as a JSON list on stdin, one line per complaint.
 *
 * The models are npm's @kubernetes-models; `make deploy-check` installs them from the lock beside this file. A kind
 * that has no model here is a complaint, so that none goes unchecked.
 */
import { readFileSync } from "node:fs";

const MODELS = {
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
  "keda.sh/v1alpha1": "@kubernetes-models/keda",
  "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api",
};

async function complaint({ apiVersion, kind, ...rest }) {
  try {
    const { [kind]: Model } = await import(`${MODELS[apiVersion]}/${apiVersion}/${kind}`);
    new Model(rest).validate();
  } catch (error) {
    return error.message;
  }
}

for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const why = await complaint(object);
  if (why) {
    console.log(`${object.kind}/${object.metadata.name}: ${why}`);
    process.exitCode = 1;
  }
}
