package mtom

import (
	"bytes"
	"io"
	"mime"
	"regexp"
	"testing"
)

var references = regexp.MustCompile(`href="cid:([^"]*)"`)

// FuzzReader: parts are no longer than what was sent, and what is held of them is bounded.
func FuzzReader(f *testing.F) {
	f.Add("multipart/related; boundary=\""+boundary+"\"", []byte(message(part("root", "<x/>"), part("d", "data"))))
	f.Add("multipart/related; boundary=\""+boundary+"\"; start=root", []byte(message(part("c", "sum"), part("root", "<x/>"), part("d", tricky))))
	f.Add("multipart/related; boundary=\""+boundary+"\"", []byte(message("Content-Transfer-Encoding: base64\r\n\r\naGVs\r\nbG8=\r\n", "content-id: <d>\r\n\r\n")))
	f.Fuzz(func(t *testing.T, contentType string, raw []byte) {
		_, parameters, err := mime.ParseMediaType(contentType)
		if err != nil {
			return
		}
		r, err := NewReader(bytes.NewReader(raw), parameters)
		if err != nil {
			return
		}
		left := len(raw)
		read := func(from io.Reader, err error) {
			if err != nil {
				return
			}
			n, err := io.Copy(io.Discard, from)
			if left -= int(n); left < 0 {
				t.Fatalf("%d bytes more came than the %d that were sent (%v)", -left, len(raw), err)
			}
		}
		read(r.Root())
		for _, reference := range references.FindAllSubmatch(raw, 4) {
			read(r.Open(string(reference[1])))
		}
		for _, id := range []string{"d", "c"} {
			read(r.Open(id))
		}
		held := 0
		for id, kept := range r.kept {
			held += len(id) + len(kept)
		}
		if held+r.room > keepBytes || r.room < 0 || r.seen > maximumParts+7 {
			t.Fatalf("%d bytes are held, there is room for %d, %d parts were looked at", held, r.room, r.seen)
		}
	})
}

// FuzzWriterIsRead: whatever the payloads hold, they come back.
func FuzzWriterIsRead(f *testing.F) {
	f.Add([]byte("<x/>"), []byte(tricky), []byte(""))
	f.Add([]byte("\r\n--"), []byte("--sojourn-"), []byte("\r\n--sojourn-0\r\n"))
	f.Fuzz(func(t *testing.T, root, first, second []byte) {
		var out bytes.Buffer
		w := NewWriter(&out)
		for _, err := range []error{
			w.Root(), write(&out, string(root)), w.Attachment("1@a"), write(&out, string(first)), w.Attachment("2@a"), write(&out, string(second)), w.Close(),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		_, parameters, err := mime.ParseMediaType(w.ContentType())
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(&out, parameters)
		if err != nil {
			t.Fatal(err)
		}
		from, err := r.Root()
		check(t, from, err, string(root))
		from, err = r.Open("1@a")
		check(t, from, err, string(first))
		from, err = r.Open("2@a")
		check(t, from, err, string(second))
	})
}
