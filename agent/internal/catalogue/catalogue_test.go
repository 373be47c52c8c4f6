package catalogue

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestSentenceAndRemedy(t *testing.T) {
	e := New("SD-702", "user", "{user} of ours.\r\n")
	if e.Sentence() != "The target has no user '{user} of ours'." || e.Error() != "SD-702: "+e.Sentence() || e.Remedy() == "" {
		t.Error(e)
	}
}

func TestAs(t *testing.T) {
	known := New("SD-601", "ports", "1-2")
	if As(errors.Join(errors.New("x"), known), "y") != known {
		t.Error("a known error was not found")
	}
	if other := As(errors.New("x"), "trying"); other.Code != "SD-903" || !strings.Contains(other.Sentence(), "trying") {
		t.Error(other)
	}
}

var field = regexp.MustCompile(`\{(\w+)\}`)

// Every error that the code makes is in the catalogue, with exactly the fields of its sentence and remedy.
func TestEveryErrorMadeIsInTheCatalogueWithItsFields(t *testing.T) {
	found := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			name, isName := call.Fun.(*ast.Ident)
			if !(ok && selector.Sel.Name == "New" && isPackage(selector.X, "catalogue")) && !(isName && name.Name == "New" && file.Name.Name == "catalogue") {
				return true
			}
			literals := make([]string, len(call.Args))
			for i, argument := range call.Args {
				if literal, ok := argument.(*ast.BasicLit); ok {
					literals[i], _ = strconv.Unquote(literal.Value)
				}
			}
			found++
			where := files.Position(call.Pos())
			e, ok := entries()[literals[0]]
			if !ok {
				t.Errorf("%s: %q is not in the catalogue", where, literals[0])
				return true
			}
			var given, wanted []string
			for i := 1; i < len(literals); i += 2 {
				given = append(given, literals[i])
			}
			for _, match := range field.FindAllStringSubmatch(e.Sentence+e.Remedy, -1) {
				if !slices.Contains(wanted, match[1]) {
					wanted = append(wanted, match[1])
				}
			}
			slices.Sort(given)
			slices.Sort(wanted)
			if !slices.Equal(given, wanted) {
				t.Errorf("%s: %s is given %v, its sentence has %v", where, literals[0], given, wanted)
			}
			return true
		})
		return nil
	})
	if err != nil || found < 20 {
		t.Errorf("%d found, %v", found, err)
	}
}

func isPackage(expression ast.Expr, name string) bool {
	identifier, ok := expression.(*ast.Ident)
	return ok && identifier.Name == name
}
