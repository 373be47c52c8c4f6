// This file is the access list on Windows: elsewhere under the system's folder every user may read.

package ownership

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// Protected from what is inherited; all rights for the system and for administrators, in what is made there too; none for others.
const access = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

// The system's calls; tests put others in their place.
var (
	setSecurity = windows.SetNamedSecurityInfo
	volume      = windows.GetVolumeInformation
)

func take(folder string) error {
	kept, err := keepsLists(folder)
	if err != nil {
		return &fs.PathError{Op: "asking for the file system of", Path: folder, Err: err}
	}
	if !kept {
		return &fs.PathError{Op: "setting the access list of", Path: folder, Err: errors.New("its file system has none")}
	}
	descriptor, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return err
	}
	list, _, err := descriptor.DACL()
	if err != nil {
		return err
	}
	if err := setSecurity(folder, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, list, nil); err != nil {
		return &fs.PathError{Op: "setting the access list of", Path: folder, Err: err}
	}
	return nil
}

// keepsLists tells whether the folder's volume has access lists. Where it has none (FAT) the system takes a list, says that all is
// well, and forgets it. What is read back is no proof either: Wine, which keeps a file's mode, makes a list up from that.
func keepsLists(folder string) (bool, error) {
	root, err := windows.UTF16PtrFromString(filepath.VolumeName(folder) + `\`)
	if err != nil {
		return false, err
	}
	var flags uint32
	if err := volume(root, nil, 0, nil, nil, &flags, nil, 0); err != nil {
		return false, err
	}
	return flags&windows.FILE_PERSISTENT_ACLS != 0, nil
}
