package ownership

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"sojourn.example/agent/internal/catalogue"
)

func TestAFolderThatCannotBeTakenIsWhyTheAgentDoesNotStart(t *testing.T) {
	err := Take(filepath.Join(t.TempDir(), "not there"))
	known, ok := errors.AsType[*catalogue.Error](err)
	if !ok || known.Code != "SD-406" || !strings.Contains(known.Fields["detail"], "not there") {
		t.Errorf("it gave %v", err)
	}
}
