// node reference.cjs <node_modules> <package>: the page of reference, from the types and comments of what the package exports.

const path = require("node:path");

const [, , modules, folder] = process.argv;
const ts = require(path.join(modules, "typescript"));

const config = ts.readConfigFile(path.join(folder, "tsconfig.json"), ts.sys.readFile).config;
const options = ts.convertCompilerOptionsFromJson(config.compilerOptions, folder).options;
const { name: packageName, exports: entries } = require(path.join(folder, "package.json"));
const files = Object.values(entries).map((entry) => path.join(folder, entry.default));
const program = ts.createProgram(files, { ...options, noEmit: true, types: [], declaration: false, emitDeclarationOnly: false });
const checker = program.getTypeChecker();
const FLAGS = ts.TypeFormatFlags.NoTruncation | ts.TypeFormatFlags.UseAliasDefinedOutsideCurrentScope;

const text = (symbol) => ts.displayPartsToString(symbol.getDocumentationComment(checker)).replace(/\s*\n\s*/g, " ");
const clean = (type) => type.replace(/import\("[^"]*"\)\./g, "").replaceAll("|", "\\|");
const hidden = (symbol) =>
  symbol.name.startsWith("_") || symbol.getJsDocTags(checker).some(({ name }) => name === "internal");

function typeOf(symbol, declaration) {
  const type = checker.getTypeOfSymbolAtLocation(symbol, declaration);
  const [signature] = type.getCallSignatures();
  if (!signature || !(symbol.flags & ts.SymbolFlags.Method)) return clean(checker.typeToString(type, undefined, FLAGS));
  const parameters = signature.getParameters().map((parameter) => {
    const at = parameter.valueDeclaration ?? declaration;
    const optional = at.initializer || checker.isOptionalParameter(at) ? "?" : "";
    const name = parameter.name.startsWith("__") ? "options" : parameter.name;
    return `${name}${optional}: ${clean(checker.typeToString(checker.getTypeOfSymbolAtLocation(parameter, at), undefined, FLAGS))}`;
  });
  return `(${parameters.join(", ")}) → ${clean(checker.typeToString(signature.getReturnType(), undefined, FLAGS))}`;
}

function table(symbols) {
  const rows = symbols.filter((symbol) => !hidden(symbol) && symbol.declarations && symbol.name !== "prototype").map((symbol) => {
    return `| \`${symbol.name}\` | \`${typeOf(symbol, symbol.declarations[0])}\` | ${text(symbol)} |`;
  });
  return ["| | | |", "|---|---|---|", ...rows].join("\n");
}

function section(exported) {
  const symbol = exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
  const type = checker.getDeclaredTypeOfSymbol(symbol);
  if (symbol.flags & ts.SymbolFlags.Class) {
    const statics = [...symbol.exports.values()].filter((one) => one.flags & ts.SymbolFlags.Method);
    const members = checker.getPropertiesOfType(type).filter((one) => one.parent === symbol);
    return [`## class ${symbol.name}`, "", text(symbol), "", table([...statics, ...members]), ""];
  }
  if (type.isUnion()) {
    return [`## ${symbol.name}`, "", `\`${type.types.map((one) => clean(checker.typeToString(one))).join(" | ")}\``, ""];
  }
  return [`## ${symbol.name}`, "", text(symbol), "", table(checker.getPropertiesOfType(type)), ""];
}

/** The classes that an exported class has objects of, such as `client.media`. */
function classesOf(exported) {
  const symbol = exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
  if (!(symbol.flags & ts.SymbolFlags.Class)) return [];
  const members = checker.getPropertiesOfType(checker.getDeclaredTypeOfSymbol(symbol)).filter((one) => one.declarations && !hidden(one));
  const types = members.map((one) => checker.getTypeOfSymbolAtLocation(one, one.declarations[0]).symbol);
  return types.filter((type) => type?.declarations?.some((at) => ts.isClassDeclaration(at) && at.getSourceFile().fileName.startsWith(path.resolve(folder))));
}

const page = ["# Reference", "", "Made by `make sdk` from the types and comments of the code.", ""];
const written = new Set(); // names that several modules give the same type
for (const [number, entry] of Object.keys(entries).entries()) {
  if (entry !== ".") page.push(`# ${packageName}${entry.slice(1)}`, "");
  for (const exported of checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(files[number])))) {
    for (const one of [exported, ...classesOf(exported)]) {
      if (!written.has(one.name)) page.push(...section(one));
      written.add(one.name);
    }
  }
}
process.stdout.write(page.join("\n").replace(/\n{3,}/g, "\n\n"));
