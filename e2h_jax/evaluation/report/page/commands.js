// The commands of TeX that take arguments: what they make of them, as a node or a list of nodes.

const FENCES = { matrix: ["", ""], smallmatrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"],
  psmallmatrix: ["(", ")"], bsmallmatrix: ["[", "]"], cases: ["{", ""], dcases: ["{", ""], rcases: ["", "}"], drcases: ["", "}"] };
const ALIGNED = new Set(("align aligned alignat alignedat eqnarray split flalign gather gathered equation multline displaymath math").split(" "));
const round = (sign) => operator(sign, { stretchy: "false" });
const boxOf = (name) => (reader) => ["mrow", { class: name }, reader.argument()];
const binomial = (reader) => ["mrow", {}, operator("("), ["mfrac", { linethickness: "0" }, reader.argument(), reader.argument()], operator(")")];
const fraction = (attributes) => (reader) => ["mfrac", attributes, reader.argument(), reader.argument()];
const inStyle = (displaystyle, read) => (reader) => ["mstyle", { displaystyle }, read(reader)];
const slanted = (reader) => ["mrow", {}, reader.argument(), operator("/", { lspace: "0", rspace: "0" }), reader.argument()];
const below = (reader) => {
  const hung = reader.argument();
  return ["munder", {}, reader.argument(), hung];
};
const above = (reader) => {
  const hung = reader.argument();
  return ["mover", {}, reader.argument(), hung];
};
const stacked = (reader) => {
  const inside = reader.inside(reader.source());
  return ["mrow", {}, ...inside.table({ bare: true }, () => inside.next === undefined)];
};
const same = (reader) => reader.argument();
const left = (reader) => {
  reader.source();
  return [];
};

const COMMANDS = {
  begin(reader) {
    const whole = reader.source();
    const name = whole.replace(/\*$/, "");
    let after = 0;
    const ends = () => {
      if (reader.next !== "\\end") return false;
      const at = reader.at++;
      if (reader.source() !== whole) throw new Error(`\\end{${whole}} is missing`);
      [after, reader.at] = [reader.at, at];
      return true;
    };
    let options = {};
    if (Object.hasOwn(FENCES, name)) options = { fences: FENCES[name], columns: /cases/.test(name) ? "ll" : "", display: name.startsWith("d"), small: name.includes("small") };
    else if (name === "array" || name === "tabular") {
      reader.optional();
      options = { columns: reader.source().replace(/@\{[^}]*\}|p\{[^}]*\}|\s/g, "") };
    } else if (ALIGNED.has(name)) options = { aligned: true };
    else throw new Error(`\\begin{${name}} is not known`);
    if (/alignat|alignedat/.test(name)) reader.source();
    else if (options.aligned) reader.optional();
    const nodes = reader.within(() => reader.table(options, ends));
    reader.at = after;
    return ["mrow", {}, ...nodes];
  },
  left(reader) {
    return reader.within(() => {
      const opening = reader.fence({ stretchy: "true", form: "prefix" });
      const inside = reader.list(() => reader.next === "\\right");
      reader.at++;
      return ["mrow", {}, ...[opening, ...inside, reader.fence({ stretchy: "true", form: "postfix" })].filter(Boolean)];
    });
  },
  middle: (reader) => reader.fence({ stretchy: "true", lspace: "0.1em", rspace: "0.1em" }) ?? [],

  frac: fraction({}), dfrac: fraction({ displaystyle: "true" }), tfrac: inStyle("false", fraction({})),
  cfrac(reader) {
    reader.optional();
    return COMMANDS.dfrac(reader);
  },
  nicefrac: slanted, sfrac: slanted, binom: binomial, dbinom: inStyle("true", binomial), tbinom: inStyle("false", binomial),
  sqrt(reader) {
    const index = reader.optional();
    return index ? ["mroot", {}, reader.argument(), ["mrow", {}, ...reader.inner(index.join(""))]] : ["msqrt", {}, reader.argument()];
  },
  overline: boxOf("overline"), underline: boxOf("underline"), boxed: boxOf("boxed"),
  cancel: boxOf("cancel"), bcancel: boxOf("cancel"), xcancel: boxOf("cancel"), sout: boxOf("cancel"),
  overset: above, stackrel: above, underset: below, substack: stacked, displaylines: stacked,
  operatorname(reader) {
    if (reader.next === "*") reader.at++;
    const name = reader.source().replace(/\\[,;: ]/g, "\u2009").replace(/\\[a-zA-Z]+|[{}]/g, "").trim();
    return reader.named(name, true);
  },
  mathop: (reader) => Object.assign([...reader.argument()], { limits: true }),
  mathbin: same, mathrel: same, mathord: same, mathopen: same, mathclose: same, mathinner: same, mathpunct: same, mathclap: same, mathllap: same, mathrlap: same,
  bmod: () => operator("mod", { lspace: "0.22em", rspace: "0.22em" }),
  mod: () => [space(2 / 3), ["mi", {}, "mod"], space(1 / 3)],
  pmod: (reader) => [space(0.45), round("("), ["mi", {}, "mod"], space(1 / 3), reader.argument(), round(")")],
  pod: (reader) => [space(0.45), round("("), reader.argument(), round(")")],
  not(reader) {
    const [tag, attributes, sign] = reader.argument();
    if (typeof sign !== "string") throw new Error("\\not has nothing to cross out");
    return [tag, attributes, `${sign}\u0338`.normalize("NFC")];
  },
  phantom: (reader) => ["mphantom", {}, reader.argument()],
  hphantom: (reader) => ["mphantom", {}, reader.argument()],
  vphantom(reader) {
    reader.argument();
    return [];
  },
  smash(reader) {
    reader.optional();
    return reader.argument();
  },
  hspace(reader) {
    if (reader.next === "*") reader.at++;
    return reader.width(reader.source());
  },
  hskip: (reader) => reader.width(reader.length()), kern: (reader) => reader.width(reader.length()),
  mkern: (reader) => reader.width(reader.length()), mskip: (reader) => reader.width(reader.length()),
  tag(reader) {
    if (reader.next === "*") reader.at++;
    return [space(1), ["mtext", {}, `(${reader.source()})`]];
  },
  // Colours, labels and heights are left out; what they are laid on is shown.
  color: left, label: left, vspace: left,
  textcolor(reader) {
    reader.source();
    return reader.argument();
  },
  colorbox(reader) {
    reader.source();
    return reader.text("text");
  },
};
for (const [name, sign] of ABOVE) COMMANDS[name] = (reader) => Object.assign(["mover", {}, reader.argument(), operator(sign, { stretchy: "true" })], { limits: true });
for (const [name, sign] of BELOW) COMMANDS[name] = (reader) => Object.assign(["munder", {}, reader.argument(), operator(sign, { stretchy: "true" })], { limits: true });
for (const [name, sign] of ARROWS) {
  COMMANDS[name] = (reader) => {
    const under = reader.optional();
    const arrow = operator(sign, { stretchy: "true" });
    const hung = reader.argument();
    return under ? ["munderover", {}, arrow, ["mrow", {}, ...reader.inner(under.join(""))], hung] : ["mover", {}, arrow, hung];
  };
}
