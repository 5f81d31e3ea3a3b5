{{/* The settings of the server: TWINSHOT_… for every value of model and server that is set, and what follows. */}}
{{- define "twinshot.environment" -}}
{{- $values := .Values }}
{{- range $section := list $values.model $values.server }}
{{- range $name, $value := $section }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: TWINSHOT_{{ snakecase $name | upper }}
  value: {{ include "twinshot.number" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
- name: TWINSHOT_PORT
  value: "8000"
- name: TWINSHOT_DEVICE
  value: {{ ternary "cpu" "cuda" (eq (int $values.gpu.count) 0) }}
- name: TWINSHOT_REPLICAS
  value: {{ max 1 (int $values.gpu.count) | quote }}
{{- with $values.auth.existingSecret }}
- name: TWINSHOT_API_KEYS_FILE
  value: /etc/twinshot/{{ $values.auth.keysFile }}
{{- with $values.auth.adminKey }}
- name: TWINSHOT_ADMIN_KEY
  valueFrom:
    secretKeyRef: {name: {{ $values.auth.existingSecret }}, key: {{ . }}}
{{- end }}
{{- end }}
{{- if include "twinshot.prePulled" . }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- else }}
{{- include "twinshot.hubToken" . }}
{{- end }}
{{- range $name, $value := $values.extraEnv }}
- name: {{ $name }}
  {{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
  {{- else }}
  value: {{ include "twinshot.number" $value | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "twinshot.hubToken" }}
{{- with .Values.hfToken.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.hfToken.key }}}
{{- end }}
{{- end }}
