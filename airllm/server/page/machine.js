// What the machine panel shows, from the server's /props.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

function bytes(n) {
  let unit = 0;
  for (; n >= 1024 && unit < UNITS.length - 1; unit++) n /= 1024;
  return `${n.toFixed(unit && n < 100 ? 1 : 0)} ${UNITS[unit]}`;
}

const tokens = (n) => `${n.toLocaleString("en")} tokens`;

/** Rows of [name, value]. What the server does not say has no row. */
export function machineRows(props) {
  const { plan, memory, stream } = props;
  return [
    ["Model", `${props.model}, ${props.family ?? ""}`.replace(/, $/, "")],
    ["State", props.state !== "loaded" && props.state],
    ["Context", props.context && tokens(props.context)],
    ["Computes with", [props.backend, props.isa, props.threads && `${props.threads} threads`].filter(Boolean).join(", ")],
    ...(plan ? planRows(plan) : []),
    ["The process takes", memory && bytes(memory.resident)],
    ...(stream ? streamRows(stream) : []),
    ...(props.model_loaded ? useRows(props) : []),
  ].filter(([, value]) => value);
}

function useRows(props) {
  return [
    ["Answers now", `${props.requests_running} run, ${props.requests_waiting} wait`],
    ["Kept of earlier prompts", bytes(props.prefix_cache_bytes)],
  ];
}

function planRows(plan) {
  const layers = plan.pinned_layers.length + plan.streamed_layers.length;
  return [
    ["Memory granted", plan.budget_bytes === null ? "no limit" : bytes(plan.budget_bytes)],
    ["Planned", `${bytes(plan.total_bytes)} for a model of ${bytes(plan.model_bytes)}`],
    ["Layers in memory", `${plan.pinned_layers.length} of ${layers}`],
    ["Read from the disk for each pass", plan.streamed_bytes_per_pass && bytes(plan.streamed_bytes_per_pass)],
  ];
}

function streamRows(stream) {
  const speed = stream.disk_seconds && `${bytes(stream.bytes_read / stream.disk_seconds)}/s`;
  const asked = stream.expert_hits + stream.expert_misses;
  return [
    ["Read so far", bytes(stream.bytes_read)],
    ["The disk's speed", speed],
    ["Experts found in memory", asked && `${Math.round((100 * stream.expert_hits) / asked)}%`],
  ];
}
