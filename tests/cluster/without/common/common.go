// Package common stands in for a cloud's SDK that a backend of flanneld is compiled with. The lane never calls it.
package common

func StringPtr(v string) *string { return &v }

func BoolPtr(v bool) *bool { return &v }

func StringPtrs(values []string) []*string {
	var pointers []*string
	for _, each := range values {
		pointers = append(pointers, &each)
	}
	return pointers
}
