// The page without code: what can be chosen, a button, and the results step by step. All that is
// measured comes from the kernel (fairlab/page.py); text goes into the page as text, never as HTML.

const WAIT = 300; // ms after the last letter, until the prompts are checked
const PATIENCE = 30000; // ms without any answer, until the page says that nobody answers
const LONGEST = 400; // characters of a prompt
const OWN = "two prompts of your own";
const WORDS = { "0": "0 (removes them)" }; // how some values are written
// name of a choice → its name in the address
const IN_ADDRESS = {
  prompt_a: "a", prompt_b: "b", point: "point", layer: "layer", score: "score",
  count: "neurons", scale: "scale", n_random: "cuts",
};

function add(parent, tag, text, className) {
  const child = parent.appendChild(document.createElement(tag));
  if (text) child.textContent = text;
  if (className) child.className = className;
  return child;
}

// Return the values that each choice may have; a prompt may be any sentence that is not too long.
function allowedValues(offer) {
  const upTo = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => first + i);
  return {
    point: offer.points,
    layer: upTo(0, offer.layers - 1),
    score: offer.scores,
    count: upTo(1, offer.neurons),
    scale: offer.scales,
    n_random: offer.cuts,
  };
}

// Read choices from the address: those that are allowed, and the names of those that are not.
function readAddress(allowed) {
  const said = new URLSearchParams(window.location.hash.slice(1));
  const choices = {}, refused = [];
  for (const [name, short] of Object.entries(IN_ADDRESS)) {
    const value = said.get(short);
    if (value === null) continue;
    const values = allowed[name];
    const fits = values ? values.find((each) => String(each) === value) : value;
    if (fits === undefined || value.length > LONGEST) refused.push(short);
    else choices[name] = fits;
  }
  return { choices, refused };
}

function hashOf(choices) {
  const said = new URLSearchParams();
  for (const [name, short] of Object.entries(IN_ADDRESS)) said.set(short, choices[name]);
  return `#${said}`;
}

function render({ model, el }) {
  const offer = model.get("offer");
  const allowed = allowedValues(offer);
  const withAddress = document.body.dataset.voila !== undefined; // JupyterLab has its own address
  const inputs = {}; // name of a choice → its control
  const urls = []; // of pictures, to be given back at the end
  let ready = false; // whether the model is loaded
  let checks = 0, typing, silence, step, ran;

  el.classList.add("fairlab-app");
  const form = add(el, "form");
  form.setAttribute("aria-label", "What to look at and what to cut");

  const prompts = add(form, "fieldset");
  add(prompts, "legend", "Two prompts");
  const pairs = choice(prompts, "pair");
  let group;
  for (const pair of offer.pairs) {
    if (!group || group.label !== pair.group) {
      group = add(pairs, "optgroup");
      group.label = pair.group;
    }
    add(group, "option", pair.label);
  }
  add(pairs, "option", OWN);
  const tokens = {};
  for (const [name, label] of [["prompt_a", "first prompt"], ["prompt_b", "second prompt"]]) {
    inputs[name] = named(add(labelled(prompts, label, "long"), "textarea"), label);
    inputs[name].rows = 2;
    inputs[name].maxLength = LONGEST;
    inputs[name].spellcheck = false;
    tokens[name] = add(prompts, "ol", "", "tokens");
    tokens[name].setAttribute("aria-label", `tokens of the ${label}`);
  }
  const note = add(prompts, "p", "", "note");
  note.setAttribute("role", "status");

  const look = add(form, "fieldset");
  add(look, "legend", "Where to look");
  inputs.point = choice(look, "capture point", allowed.point);
  inputs.layer = slider(look, "layer", allowed.layer);

  const cut = add(form, "fieldset");
  add(cut, "legend", "What to cut, and how to judge it");
  inputs.score = choice(cut, "score", allowed.score);
  inputs.count = slider(cut, "neurons in each layer", allowed.count);
  inputs.scale = choice(cut, "their activations times", allowed.scale);
  inputs.n_random = choice(cut, "random cuts beside it", allowed.n_random);

  const run = add(add(form, "div", "", "run"), "button", "Run when the model is loaded");
  run.type = "submit";
  const link = add(run.parentNode, "a", "Link to these choices");
  link.hidden = !withAddress;
  const status = add(el, "p", "The model is being loaded: choose meanwhile.", "status");
  status.setAttribute("role", "status");
  const alert = add(el, "p", "", "alert");
  alert.setAttribute("role", "alert");
  const results = add(el, "section");
  results.setAttribute("aria-label", "Results");

  function labelled(parent, text, className) {
    const label = add(parent, "label", "", className);
    add(label, "span", text, "name");
    return label;
  }

  // The name without the options and the readout, which stand in the label, too.
  function named(input, text) {
    input.setAttribute("aria-label", text);
    return input;
  }

  function choice(parent, text, values = []) {
    const input = named(add(labelled(parent, text), "select"), text);
    for (const value of values) add(input, "option", WORDS[value] ?? String(value));
    return input;
  }

  function slider(parent, text, values) {
    const label = labelled(parent, text, "slider");
    const input = named(add(label, "input"), text);
    input.type = "range";
    input.min = values[0];
    input.max = values.at(-1);
    add(label, "output");
    return input;
  }

  // Return what the controls say.
  function choices() {
    const chosen = { prompt_a: inputs.prompt_a.value, prompt_b: inputs.prompt_b.value };
    for (const [name, values] of Object.entries(allowed)) {
      const input = inputs[name];
      chosen[name] = input.type === "range" ? Number(input.value) : values[input.selectedIndex];
    }
    return chosen;
  }

  function show(chosen) {
    for (const [name, value] of Object.entries(chosen)) {
      const input = inputs[name];
      if (input.tagName === "SELECT") input.selectedIndex = allowed[name].indexOf(value);
      else input.value = value;
    }
    changed();
    check();
  }

  // After a move of any control: the readouts, the pair above the prompts, and the address.
  function changed() {
    for (const input of form.querySelectorAll("input[type=range]")) {
      input.nextSibling.textContent = input.value;
    }
    const chosen = choices();
    const same = (pair) =>
      pair.prompt_a === chosen.prompt_a && pair.prompt_b === chosen.prompt_b;
    const known = offer.pairs.findIndex(same);
    pairs.selectedIndex = known < 0 ? offer.pairs.length : known;
    if (!withAddress) return;
    link.href = hashOf(chosen);
    window.history.replaceState(null, "", link.href);
  }

  function check() {
    const { prompt_a, prompt_b } = choices();
    model.send({ kind: "check", number: ++checks, prompt_a, prompt_b });
  }

  form.addEventListener("input", (event) => {
    if (event.target === pairs) {
      const pair = offer.pairs[pairs.selectedIndex];
      if (pair) show({ prompt_a: pair.prompt_a, prompt_b: pair.prompt_b });
      else inputs.prompt_a.focus();
      return;
    }
    changed();
    if (event.target.tagName !== "TEXTAREA") return;
    clearTimeout(typing);
    typing = setTimeout(check, WAIT);
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (run.disabled) return;
    ran = choices();
    alert.textContent = "";
    run.disabled = true;
    if (ready) ask();
    else {
      status.textContent = "The model is being loaded; then it runs with these choices …";
      listen();
    }
  });

  // Send what was chosen when the button was pressed.
  function ask() {
    const { prompt_a, prompt_b, ...rest } = ran;
    status.textContent = "Asking the server …";
    model.send({ kind: "run", prompt_a, prompt_b, choices: rest });
    listen();
  }

  // Say so if no answer comes.
  function listen() {
    silence = setTimeout(() => {
      alert.textContent = "The server does not answer: it may have stopped after a while without "
        + "use. Load this page again" + (withAddress ? ", which keeps your choices; on Binder, open "
        + "it anew and put the end of this address, from # on, behind the new one." : ".");
      status.textContent = ""; // the button stays shut: the answer may only be late
    }, PATIENCE);
  }

  function failed(text) {
    alert.textContent = text;
    status.textContent = "";
    run.disabled = false;
  }

  function working() {
    const { length } = offer.steps;
    status.textContent = `Step ${step + 1} of ${length}: ${offer.steps[step]} …`;
  }

  const answers = {
    loaded({ fault }) {
      if (ready) return; // another view of the page asked, too
      ready = true;
      run.textContent = "Run";
      if (fault) failed(fault);
      else if (run.disabled) ask(); // it was pressed meanwhile
      else status.textContent = "The model is loaded.";
    },
    checked({ number, tokens: marked, good, text }) {
      if (number !== checks) return; // something else was typed since
      marked.forEach((pieces, place) => {
        const list = tokens[place ? "prompt_b" : "prompt_a"];
        list.replaceChildren();
        for (const [piece, differs] of pieces) {
          const item = add(list, "li");
          add(item, differs ? "mark" : "span", piece.replaceAll(" ", "·"));
        }
      });
      note.textContent = `${good ? "✓" : "✗"} ${text}`;
      inputs.prompt_a.setAttribute("aria-invalid", String(!good));
      inputs.prompt_b.setAttribute("aria-invalid", String(!good));
    },
    started() {
      results.replaceChildren();
      alert.textContent = ""; // an answer that was late
      const { prompt_a, prompt_b, ...rest } = ran; // what was sent, whatever was moved since
      add(results, "h2", "Results");
      const list = add(results, "p", "", "chosen");
      const said = Object.entries(rest).map(([name, value]) => `${IN_ADDRESS[name]} ${value}`);
      list.textContent = `${prompt_a} … / ${prompt_b} … (${said.join(", ")})`;
      step = 0;
      working();
    },
    step({ title, sentences, texts, pictures }, buffers) {
      const section = add(results, "section");
      add(section, "h3", title);
      for (const sentence of sentences) add(section, "p", sentence);
      if (texts.length) {
        const grid = add(section, "div", "", "texts");
        for (const { label, text } of texts) {
          const block = add(grid, "figure");
          add(block, "figcaption", label);
          add(block, "blockquote", text);
        }
      }
      const grid = add(section, "div", "", "pictures");
      pictures.forEach((picture, place) => {
        const url = URL.createObjectURL(new Blob([buffers[place]], { type: "image/png" }));
        urls.push(url);
        const block = add(grid, "figure");
        const image = add(block, "img");
        image.src = url;
        image.alt = `${picture.title}. ${picture.text}`;
        const caption = add(block, "figcaption", `${picture.title}. ${picture.text} `);
        const save = add(caption, "a", "Download the picture");
        save.href = url;
        save.download = `${picture.title.toLowerCase().replaceAll(" ", "-")}.png`;
        save.setAttribute("aria-label", `Download the picture: ${picture.title}`);
      });
      step += 1;
      if (step < offer.steps.length) working();
    },
    done() {
      status.textContent = `Done: all ${offer.steps.length} steps are below.`;
      run.disabled = false;
    },
    failed: ({ text }) => failed(text),
  };
  const take = (content, buffers) => {
    if (content.kind !== "checked") clearTimeout(silence);
    answers[content.kind](content, buffers);
  };
  model.on("msg:custom", take);

  function follow() {
    const { choices: asked, refused } = readAddress(allowed);
    show({ ...offer.start, ...asked });
    if (refused.length) {
      alert.textContent = `The link asks for what is not offered (${refused.join(", ")}); `
        + "there the page keeps its own choice.";
    }
  }
  if (withAddress) {
    window.addEventListener("hashchange", follow);
    follow();
  } else show(offer.start);
  model.send({ kind: "wait" });

  return () => {
    model.off("msg:custom", take);
    window.removeEventListener("hashchange", follow);
    clearTimeout(typing);
    clearTimeout(silence);
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
