// This file is the lease as agents of other runs see it: a small file in the agent's folder.

package lease

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"sojourn.example/agent/internal/host"
)

// RecordName is the file's name in the agent's folder.
const RecordName = "lease.json"

// Record is what an agent says of its lease, for who cleans up after other runs.
type Record struct {
	BootID     string  `json:"boot_id"`
	Until      float64 `json:"until"`      // seconds since that boot, by a clock that nobody sets
	Unfinished int     `json:"unfinished"` // processes that will be waited for after the lease's end
}

// NewRecord is the record of a lease that has so long to go.
func NewRecord(remaining time.Duration, unfinished int) Record {
	return Record{BootID: host.BootID(), Until: (host.SinceBoot() + remaining).Seconds(), Unfinished: unfinished}
}

// Left is the time that the record's lease still has; less than zero: since when it is over. False: it is of another boot.
func (r Record) Left() (left time.Duration, ofThisBoot bool) {
	if r.BootID != host.BootID() {
		return 0, false
	}
	return time.Duration(r.Until*float64(time.Second)) - host.SinceBoot(), true
}

// Save writes the record whole or not at all. Where it cannot be written it is removed: none at all counts as that of a living
// agent, and an old one would make a living agent seem dead.
func (r Record) Save(folder string) error {
	final := filepath.Join(folder, RecordName)
	raw, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(final+".new", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(final+".new", final)
	}
	if err != nil {
		_ = os.Remove(final + ".new")
		_ = os.Remove(final)
	}
	return err
}

// LoadRecord reads the record of the agent in a folder.
func LoadRecord(folder string) (r Record, err error) {
	raw, err := os.ReadFile(filepath.Join(folder, RecordName))
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	return r, err
}
