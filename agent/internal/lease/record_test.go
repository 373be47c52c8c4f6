package lease

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRecord(t *testing.T) {
	folder := t.TempDir()
	if _, err := LoadRecord(folder); err == nil {
		t.Error("there is a record of nobody")
	}
	if err := NewRecord(time.Minute, 2).Save(folder); err != nil {
		t.Fatal(err)
	}
	r, err := LoadRecord(folder)
	if left, now := r.Left(); err != nil || !now || left > time.Minute || left < 50*time.Second || r.Unfinished != 2 {
		t.Error(r, err)
	}
	if err := NewRecord(-time.Minute, 0).Save(folder); err != nil {
		t.Fatal(err)
	}
	r, _ = LoadRecord(folder)
	if left, now := r.Left(); !now || left > -time.Minute {
		t.Error(r, left)
	}
	r.BootID = "another"
	if _, now := r.Left(); now {
		t.Error("another boot's lease counts")
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 1 {
		t.Error(entries)
	}
}

// An old record must not make a living agent seem dead.
func TestARecordThatCannotBeWrittenIsNone(t *testing.T) {
	folder := t.TempDir()
	if err := NewRecord(time.Minute, 0).Save(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, RecordName+".new"), 0o700); err != nil { // in the way of writing
		t.Fatal(err)
	}
	if err := NewRecord(time.Hour, 0).Save(folder); err == nil {
		t.Error("written")
	}
	if _, err := LoadRecord(folder); !os.IsNotExist(err) {
		t.Error("the old record is still there", err)
	}
}
