// The commands of TeX that stand for a character, by what they are in a formula. Pairs of name and character.

const pairs = (text) => {
  const words = text.trim().split(/\s+/);
  return words.filter((_, i) => i % 2 === 0).map((name, i) => [name, words[2 * i + 1]]);
};

// Letters and signs that stand for themselves: <mi>.
const LETTERS = new Map(pairs(`
  alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ varkappa ϰ lambda λ mu μ nu ν
  xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω digamma ϝ
  ell ℓ imath ı jmath ȷ partial ∂ hbar ℏ hslash ℏ wp ℘`));
const UPRIGHT = new Map(pairs(`
  Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω varGamma Γ varDelta Δ varTheta Θ varOmega Ω
  infty ∞ nabla ∇ forall ∀ exists ∃ nexists ∄ emptyset ∅ varnothing ∅ aleph ℵ beth ℶ Re ℜ Im ℑ top ⊤ bot ⊥ angle ∠ measuredangle ∡
  sphericalangle ∢ triangle △ triangledown ▽ blacktriangle ▲ square □ Box □ blacksquare ■ Diamond ◇ diamondsuit ♢ heartsuit ♡
  spadesuit ♠ clubsuit ♣ lozenge ◊ bigstar ★ checkmark ✓ degree ° dag † dagger † ddag ‡ ddagger ‡ pounds £ euro € yen ¥ S § P ¶
  copyright © flat ♭ natural ♮ sharp ♯ surd √ backprime ‵ complement ∁ mho ℧ eth ð cent ¢ ldots … dots … dotsc … mathellipsis …
  textdegree ° textasciitilde ~ textquotesingle ' textquotedblleft “ textquotedblright ” textbackslash \\ textbullet • textendash – textemdash —`));

// Operators and relations: <mo>, with the spacing that the browser's dictionary has for them.
const OPERATORS = new Map(pairs(`
  pm ± mp ∓ times × div ÷ cdot ⋅ ast ∗ star ⋆ circ ∘ bullet ∙ oplus ⊕ ominus ⊖ otimes ⊗ oslash ⊘ odot ⊙ cap ∩ cup ∪ uplus ⊎ sqcap ⊓
  sqcup ⊔ vee ∨ lor ∨ wedge ∧ land ∧ setminus ∖ smallsetminus ∖ wr ≀ amalg ⨿ diamond ⋄ bigtriangleup △ bigtriangledown ▽ ltimes ⋉
  rtimes ⋊ boxplus ⊞ boxtimes ⊠ boxminus ⊟ dotplus ∔ centerdot ⋅ leq ≤ le ≤ leqslant ⩽ geq ≥ ge ≥ geqslant ⩾ neq ≠ ne ≠ equiv ≡
  approx ≈ approxeq ≊ sim ∼ thicksim ∼ simeq ≃ cong ≅ propto ∝ varpropto ∝ ll ≪ gg ≫ lll ⋘ ggg ⋙ prec ≺ succ ≻ preceq ⪯ succeq ⪰ subset ⊂ supset ⊃
  subseteq ⊆ supseteq ⊇ subsetneq ⊊ supsetneq ⊋ nsubseteq ⊈ nsupseteq ⊉ sqsubset ⊏ sqsubseteq ⊑ sqsupset ⊐ sqsupseteq ⊒ in ∈ ni ∋ owns ∋ notin ∉
  parallel ∥ nparallel ∦ perp ⟂ mid ∣ nmid ∤ vdash ⊢ dashv ⊣ models ⊨ vDash ⊨ Vdash ⊩ asymp ≍ bowtie ⋈ doteq ≐ lesssim ≲ gtrsim ≳ lessgtr ≶
  nless ≮ ngtr ≯ nleq ≰ ngeq ≱ ncong ≇ nsim ≁ triangleq ≜ coloneqq ≔ coloneq ≔ eqqcolon ≕ trianglelefteq ⊴ trianglerighteq ⊵ vartriangle △
  triangleleft ◃ triangleright ▹ smile ⌣ frown ⌢ therefore ∴ because ∵ to → rightarrow → gets ← leftarrow ← leftrightarrow ↔ uparrow ↑
  downarrow ↓ updownarrow ↕ Rightarrow ⇒ Leftarrow ⇐ Leftrightarrow ⇔ Uparrow ⇑ Downarrow ⇓ Updownarrow ⇕ implies ⟹ impliedby ⟸ iff ⟺
  longrightarrow ⟶ longleftarrow ⟵ longleftrightarrow ⟷ Longrightarrow ⟹ Longleftarrow ⟸ Longleftrightarrow ⟺ mapsto ↦ longmapsto ⟼
  hookrightarrow ↪ hookleftarrow ↩ nearrow ↗ searrow ↘ swarrow ↙ nwarrow ↖ rightharpoonup ⇀ rightharpoondown ⇁ leftharpoonup ↼
  leftharpoondown ↽ rightleftharpoons ⇌ leftrightharpoons ⇋ rightrightarrows ⇉ leadsto ⇝ rightsquigarrow ⇝ twoheadrightarrow ↠ nrightarrow ↛
  nRightarrow ⇏ circlearrowleft ↺ circlearrowright ↻ cdots ⋯ dotsb ⋯ dotsm ⋯ dotsi ⋯ vdots ⋮ ddots ⋱ lnot ¬ neg ¬ cdotp · ldotp . colon :
  slash / vert | lvert | rvert | Vert ‖ lVert ‖ rVert ‖ backslash \\ lbrace { rbrace } lbrack [ rbrack ] lparen ( rparen ) langle ⟨ rangle ⟩
  lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lgroup ⟮ rgroup ⟯ ulcorner ⌜ urcorner ⌝ llcorner ⌞ lrcorner ⌟ lang ⟨ rang ⟩`));

// Operators that are large in a display; true: what is below and above them stands there, and beside them in a line.
const LARGE = new Map([
  ...pairs("sum ∑ prod ∏ coprod ∐ bigcup ⋃ bigcap ⋂ bigvee ⋁ bigwedge ⋀ bigoplus ⨁ bigotimes ⨂ bigodot ⨀ biguplus ⨄ bigsqcup ⨆").map(([name, sign]) => [name, [sign, true]]),
  ...pairs("int ∫ iint ∬ iiint ∭ oint ∮ oiint ∯ intop ∫").map(([name, sign]) => [name, [sign, false]]),
]);

const FUNCTIONS = new Set(("arccos arcsin arctan arctg arg ch cos cosec cosh cot cotg coth csc ctg cth deg dim exp hom ker lg ln log sec sh sin sinh " +
  "tan tanh tg th arccot arcsec arccsc arsinh arcosh artanh").split(" "));
const LIMITS = new Set("det gcd inf lim max min Pr sup argmax argmin lcm liminf limsup injlim projlim".split(" "));

const ACCENTS = new Map(pairs("hat ^ widehat ^ check ˇ widecheck ˇ tilde ~ widetilde ~ acute ´ grave ` dot ˙ ddot ¨ breve ˘ bar ¯ vec → mathring ˚"));
const ABOVE = new Map(pairs("overrightarrow → overleftarrow ← overleftrightarrow ↔ overbrace ⏞ overparen ⏜ overarc ⏜ arc ⏜ wideparen ⏜ overgroup ⏠"));
const BELOW = new Map(pairs("underrightarrow → underleftarrow ← underbrace ⏟ underparen ⏝ undergroup ⏡"));
const ARROWS = new Map(pairs("xrightarrow → xleftarrow ← xRightarrow ⇒ xLeftarrow ⇐ xleftrightarrow ↔ xLeftrightarrow ⇔ xmapsto ↦ xlongequal ="));

// Widths in em; a thin space is three of eighteen.
const SPACES = { ",": 3 / 18, thinspace: 3 / 18, ":": 4 / 18, ">": 4 / 18, medspace: 4 / 18, ";": 5 / 18, thickspace: 5 / 18, "!": -3 / 18, negthinspace: -3 / 18,
  " ": 0.25, "\n": 0.25, space: 0.25, nobreakspace: 0.25, enspace: 0.5, quad: 1, qquad: 2 };
