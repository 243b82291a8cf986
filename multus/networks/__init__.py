"""What a pod asks for: selections, NetworkAttachmentDefinitions, isolation."""
