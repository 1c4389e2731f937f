// Draws a panel's state and tells the kernel what the reader chose. It computes nothing.

const WAITING = "The picture waits: the kernel is still at work. It follows by itself.";
const LOST = "The kernel was restarted, and this panel is no longer connected to it. Run its cell again.";
const PATIENCE = 200; // milliseconds that an answer may take before a reader is told to wait
const OURS = ":host{display:block;position:relative} svg{display:block;width:100%;height:100%;"
  + "position:absolute;inset:0;overflow:hidden;fill:currentColor}";

function make(tag, properties = {}, ...children) {
  const { role, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  if (role) node.setAttribute("role", role);
  node.append(...children);
  return node;
}

// The notebook's own keys (j, k, dd, arrows) must not act while a slider or field has the focus.
function keepKeys(input) {
  input.addEventListener("keydown", (event) => {
    const passes = event.ctrlKey || event.metaKey || event.altKey;
    if (!passes && !["Enter", "Escape", "Tab"].includes(event.key)) event.stopPropagation();
  });
}

function control(model, spec, choose) {
  if (spec.kind === "button") {
    const button = make("button", { type: "button", textContent: spec.label, title: spec.hint });
    button.addEventListener("click", () => model.send({ press: spec.name }));
    return { node: button, input: button, show() {} };
  }
  const range = spec.kind === "choice";
  const input = make("input", { type: range ? "range" : "number", min: 0, step: 1 });
  input.max = range ? spec.options.length - 1 : spec.most;
  const said = make("output");
  const node = make("label", { className: spec.kind, title: spec.hint ?? "" });
  node.append(make("span", { textContent: spec.label }), input, ...(range ? [said] : []));
  keepKeys(input);
  input.addEventListener(range ? "input" : "change", () => {
    const value = Math.round(Number(input.value));
    if (range || (value >= 0 && value <= spec.most)) choose(spec.name, value);
    else show();
  });
  function show() {
    const value = model.get("values")[spec.name];
    input.value = value;
    if (!range) return;
    said.textContent = spec.options[value];
    input.setAttribute("aria-valuetext", spec.options[value]);
  }
  return { node, input, show };
}

function picture(model) {
  const host = make("div", { className: "picture", role: "img" });
  const shadow = host.attachShadow({ mode: "open" }); // ids within SVG are then this picture's own
  const [still, frame] = [make("div"), make("div")];
  shadow.append(make("style", { textContent: OURS }), still, frame);
  return {
    node: host,
    show() {
      const leaf = model.get("frames")[model.get("values").place];
      host.setAttribute("aria-label", leaf?.alt ?? model.get("alt"));
      if (still.innerHTML === "") {
        still.innerHTML = model.get("still");
        const box = still.querySelector("svg")?.viewBox.baseVal;
        host.hidden = !box;
        if (box) host.style.setProperty("--shape", box.width / box.height);
      }
      frame.innerHTML = leaf?.svg ?? model.get("frame");
    },
  };
}

function render({ model, el }) {
  const off = [];
  const on = (names, act) => {
    for (const name of names.split(" ")) {
      model.on(name, act);
      off.push(() => model.off(name, act));
    }
  };
  const root = make("section", { className: "saelearn-panel", ariaLabel: model.get("title") });
  const choose = (name, value) => {
    model.set("values", { ...model.get("values"), [name]: value });
    model.save_changes();
  };
  const controls = model.get("controls").map((spec) => [spec, control(model, spec, choose)]);
  const bar = make("progress", { max: 1, ariaLabel: "progress" });
  const alone = model.get("frames").length > 0;
  const image = picture(model);
  const lost = make("p", { className: "lost", role: "alert" });
  const wait = make("p", { className: "wait", role: "status" });
  const [table, message, words] = [make("div"), make("div"), make("div")];
  root.append(
    make("div", { className: "controls" }, ...controls.map(([, c]) => c.node), bar),
    lost, wait, table, message, image.node, words,
  );
  el.append(root);

  let timer = null;
  const sliders = controls.filter(([spec]) => spec.kind === "choice").map(([spec]) => spec.name);
  function look() {
    const [asked, shown] = [model.get("values"), model.get("shown")];
    const waits = !alone && sliders.some((name) => asked[name] !== shown[name]);
    if (!waits) {
      clearTimeout(timer);
      timer = null;
      root.classList.remove("waits");
      wait.textContent = "";
    } else timer ??= setTimeout(() => {
      root.classList.add("waits");
      wait.textContent = WAITING;
    }, PATIENCE);
  }
  function able() {
    const gone = !alone && lost.textContent !== "";
    for (const [spec, { input }] of controls) {
      input.disabled = gone || model.get("disabled").includes(spec.name);
    }
  }
  const pairs = [
    ["change:values", () => controls.forEach(([, c]) => c.show())],
    ["change:disabled", able],
    ["change:frame change:still change:alt", image.show],
    ["change:table", () => { table.innerHTML = model.get("table"); }],
    ["change:message", () => { message.innerHTML = model.get("message"); }],
    ["change:words", () => { words.innerHTML = model.get("words"); }],
    ["change:values change:shown", look],
    ["change:progress", () => {
      const share = model.get("progress");
      bar.hidden = share === null;
      bar.value = share ?? 0;
    }],
  ];
  if (alone) pairs.push(["change:values", image.show]);
  for (const [names, act] of pairs) { on(names, act); act(); }
  on("comm_live_update", () => {
    if (alone) return;
    lost.textContent = LOST;
    able();
  });
  return () => { clearTimeout(timer); off.forEach((undo) => undo()); };
}

export default { render };
