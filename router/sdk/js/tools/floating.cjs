// node floating.cjs <node_modules> <package>: each statement of the sources that drops a promise, as `file:line text`.
//
// A promise is dropped by a statement that neither awaits it, nor says `void`, nor gives a function for its failure.

const path = require("node:path");

const [, , modules, folder] = process.argv;
const ts = require(path.join(modules, "typescript"));

const config = ts.readConfigFile(path.join(folder, "tsconfig.json"), ts.sys.readFile).config;
const options = ts.convertCompilerOptionsFromJson(config.compilerOptions, folder).options;
const files = ts.sys.readDirectory(path.join(folder, "src"), [".js"]);
const typeRoots = [path.join(modules, "@types")];
const program = ts.createProgram(files, { ...options, typeRoots, noEmit: true, declaration: false, emitDeclarationOnly: false });
const checker = program.getTypeChecker();

const isPromise = (node) => checker.getTypeAtLocation(node).getProperty("then") !== undefined;

function dropped(node) {
  if (ts.isConditionalExpression(node)) return dropped(node.whenTrue) || dropped(node.whenFalse);
  if (ts.isBinaryExpression(node) && node.operatorToken.kind !== ts.SyntaxKind.EqualsToken) return dropped(node.right);
  if (ts.isBinaryExpression(node) || ts.isAwaitExpression(node) || ts.isVoidExpression(node) || !isPromise(node)) return false;
  if (!ts.isCallExpression(node) || !ts.isPropertyAccessExpression(node.expression)) return true;
  const { name, expression } = node.expression;
  if (name.text === "finally") return dropped(expression);
  return !(name.text === "catch" || (name.text === "then" && node.arguments.length === 2));
}

function visit(node, file) {
  if (ts.isExpressionStatement(node) && dropped(node.expression)) {
    const { line } = file.getLineAndCharacterOfPosition(node.getStart());
    console.log(`${path.basename(file.fileName)}:${line + 1} ${node.getText().split("\n")[0]}`);
    process.exitCode = 1;
  }
  ts.forEachChild(node, (child) => visit(child, file));
}

for (const name of files) visit(program.getSourceFile(name), program.getSourceFile(name));
