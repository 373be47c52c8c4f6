package config

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"sojourn.example/agent/internal/catalogue"
)

// FuzzRead: what is taken is within its bounds and comes back when it is written and read again; what is not is SD-406.
func FuzzRead(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := Read(bytes.NewReader(raw))
		if err != nil {
			if known, ok := errors.AsType[*catalogue.Error](err); !ok || known.Code != "SD-406" {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		sum := c.Fingerprint()
		if !IsRun(c.Run) || !strings.EqualFold(hex.EncodeToString(sum[:]), c.ClientSHA256) || c.Lease().Seconds() < 1 || c.Lease().Hours() > 24 ||
			c.Ports.First < 1 || c.Ports.Last < c.Ports.First || c.Ports.Last > 65535 || len(c.ControllerAddresses) > 64 {
			t.Fatalf("%+v", c)
		}
		for _, address := range c.ControllerAddresses {
			if parsed, err := netip.ParseAddr(address); err != nil || parsed.Zone() != "" || parsed.Is4In6() {
				t.Fatal(address, err)
			}
		}
		written, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Read(bytes.NewReader(written)); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v became %+v: %v", c, again, err)
		}
	})
}
