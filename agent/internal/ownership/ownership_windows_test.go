package ownership

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"
)

// From winnt.h: all that can be done to a file.
const everything = 0x1f01ff

const (
	system         = "S-1-5-18"
	administrators = "S-1-5-32-544"
)

// entries gives a list's, sorted.
func entries(t *testing.T, list *windows.ACL) (found []string) {
	t.Helper()
	if list == nil {
		t.Fatal("there is no list: everybody may do everything")
	}
	for i := range uint32(list.AceCount) {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(list, i, &ace); err != nil {
			t.Fatal(err)
		}
		found = append(found, entry(ace.Header.AceType, ace.Header.AceFlags, ace.Mask, (*windows.SID)(unsafe.Pointer(&ace.SidStart)).String()))
	}
	slices.Sort(found)
	return found
}

func entry(kind, flags uint8, rights windows.ACCESS_MASK, who string) string {
	return fmt.Sprintf("%s: kind %d, flags %#x, rights %#x", who, kind, flags, rights)
}

// wanted are an allowing entry for each of the two and nobody else's.
func wanted(flags uint8) []string {
	return []string{
		entry(windows.ACCESS_ALLOWED_ACE_TYPE, flags, everything, system),
		entry(windows.ACCESS_ALLOWED_ACE_TYPE, flags, everything, administrators),
	}
}

const forWhatIsInIt = windows.OBJECT_INHERIT_ACE | windows.CONTAINER_INHERIT_ACE

// instead puts another call in the place of the system's for a test.
func instead[F any](t *testing.T, place *F, call F) {
	t.Helper()
	before := *place
	*place = call
	t.Cleanup(func() { *place = before })
}

type call = func(string, windows.SE_OBJECT_TYPE, windows.SECURITY_INFORMATION, *windows.SID, *windows.SID, *windows.ACL, *windows.ACL) error

func answering(answer error) call {
	return func(string, windows.SE_OBJECT_TYPE, windows.SECURITY_INFORMATION, *windows.SID, *windows.SID, *windows.ACL, *windows.ACL) error {
		return answer
	}
}

func TestTheListIsForTheSystemAndAdministratorsAlone(t *testing.T) {
	folder, calls := t.TempDir(), 0
	instead[call](t, &setSecurity, func(name string, kind windows.SE_OBJECT_TYPE, what windows.SECURITY_INFORMATION, owner, group *windows.SID, list, audit *windows.ACL) error {
		calls++
		if name != folder || kind != windows.SE_FILE_OBJECT || owner != nil || group != nil || audit != nil {
			t.Errorf("set on %q, kind %d, owner %v, group %v, audit %v", name, kind, owner, group, audit)
		}
		// Protected: or what is inherited would be added.
		if what != windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION {
			t.Errorf("set is %#x", what)
		}
		if found := entries(t, list); !slices.Equal(found, wanted(forWhatIsInIt)) {
			t.Errorf("the list has\n%s", strings.Join(found, "\n"))
		}
		return nil
	})
	if err := Take(folder); err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
	descriptor, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		t.Fatal(err)
	}
	if control, _, err := descriptor.Control(); err != nil || control&windows.SE_DACL_PROTECTED == 0 {
		t.Errorf("it is not protected: %#x, %v", control, err)
	}
}

func TestTheSystemTakesTheList(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Take(folder); err != nil {
		t.Fatal(err)
	}
	if windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil {
		return // which keeps a mode, not a list
	}
	for path, flags := range map[string]uint8{folder: forWhatIsInIt, file: windows.INHERITED_ACE} {
		descriptor, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
		if err != nil {
			t.Fatal(err)
		}
		list, _, err := descriptor.DACL()
		if err != nil {
			t.Fatal(err)
		}
		if found := entries(t, list); !slices.Equal(found, wanted(flags)) {
			t.Errorf("%s has\n%s", path, strings.Join(found, "\n"))
		}
	}
}

func TestAListThatIsNotTakenIsAnError(t *testing.T) {
	instead(t, &setSecurity, answering(windows.ERROR_ACCESS_DENIED))
	folder := t.TempDir()
	if err := Take(folder); err == nil || !strings.Contains(err.Error(), folder) {
		t.Errorf("it gave %v", err)
	}
}

func TestAFileSystemWithoutListsIsAnError(t *testing.T) {
	instead(t, &setSecurity, answering(nil)) // as Windows has it there
	for _, answer := range []error{nil, windows.ERROR_ACCESS_DENIED} {
		instead(t, &volume, func(_, _ *uint16, _ uint32, _, _, flags *uint32, _ *uint16, _ uint32) error {
			*flags = windows.FILE_CASE_PRESERVED_NAMES
			return answer
		})
		if Take(t.TempDir()) == nil {
			t.Errorf("it was taken all the same, where what the file system has gave %v", answer)
		}
	}
}
